"""Tag schemes: every scheme to BIO, entities of broken sequences, by hand and by seqeval."""

from __future__ import annotations

import random

import pytest

from filbert.data.tag_schemes import (
    bio_of,
    entity_labels,
    scheme_of,
    spans_of,
    split_tag,
    to_bio,
)
from filbert.errors import FilbertError

seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")

# the same two sentences in each scheme: [LOC x x] [LOC x] o [PER x x x]
BIO = [["B-LOC", "I-LOC", "B-LOC"], ["O", "B-PER", "I-PER", "I-PER"]]
SCHEMES = {
    "iob1": [["I-LOC", "I-LOC", "B-LOC"], ["O", "I-PER", "I-PER", "I-PER"]],
    "bioes": [["B-LOC", "E-LOC", "S-LOC"], ["O", "B-PER", "I-PER", "E-PER"]],
    "bmes": [["B-LOC", "E-LOC", "S-LOC"], ["O", "B-PER", "M-PER", "E-PER"]],
    "bilou": [["B-LOC", "L-LOC", "U-LOC"], ["O", "B-PER", "I-PER", "L-PER"]],
    "bio": BIO,
}


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_is_told_and_becomes_bio(name: str) -> None:
    scheme = scheme_of(SCHEMES[name])
    assert scheme == ("iob1" if name == "iob1" else "bio")
    tags, repairs = to_bio(SCHEMES[name], scheme)
    assert tags == BIO
    assert repairs.count == 0
    # read as they are, the entities are the same
    assert [spans_of(row) for row in SCHEMES[name]] == [
        [(0, 2, "LOC"), (2, 3, "LOC")],
        [(1, 4, "PER")],
    ]


def test_a_file_with_only_i_tags_is_iob1() -> None:
    assert scheme_of([["I-X", "I-X", "O"]]) == "iob1"


def test_bio_with_a_break_is_not_taken_for_iob1() -> None:
    assert scheme_of([["O", "I-X"], ["B-X", "O"]]) == "bio"


def test_breaks_are_mended_counted_and_the_first_is_told() -> None:
    tags, repairs = to_bio([["O", "B-A"], ["O", "I-A", "I-B", "O", "I-B"]], "bio")
    assert tags == [["O", "B-A"], ["O", "B-A", "B-B", "O", "B-B"]]
    assert repairs.count == 3
    assert repairs.first == (1, 1, "I-A")


def test_an_ended_entity_does_not_go_on() -> None:
    tags, repairs = to_bio([["S-A", "E-A", "I-A"]], "bio")
    assert tags == [["B-A", "B-A", "B-A"]]
    assert repairs.count == 2


@pytest.mark.parametrize("tags", [["NN", "VB", "."], ["O", "PER"], ["B-", "X"], ["-LRB-", "NN"]])
def test_labels_without_letters_are_plain(tags: list[str]) -> None:
    assert scheme_of([tags]) == "plain"


def test_only_outside_is_an_entity_file() -> None:
    assert scheme_of([["O", "O"]]) == "bio"


def test_a_tag_without_letter_among_others_is_refused_by_name() -> None:
    with pytest.raises(FilbertError, match=r"'PER' has no letter before its type.*B-"):
        scheme_of([["B-LOC", "PER"]])


def test_a_type_may_hold_hyphens() -> None:
    assert split_tag("B-creative-work") == ("B", "creative-work")


@pytest.mark.parametrize("seed", range(60))
def test_entities_of_random_sequences_are_seqevals(seed: int) -> None:
    """`get_entities` of seqeval reads sequences, broken or not, as conlleval does."""
    draw = random.Random(seed)
    letters = draw.choice(["BI", "BIES"])
    choice = ["O", "O", *(f"{letter}-{name}" for letter in letters for name in ("A", "B-c"))]
    tags = [draw.choice(choice) for _ in range(draw.randint(0, 12))]
    theirs = [(first, last + 1, name) for name, first, last in seqeval.get_entities(tags)]
    assert spans_of(tags) == theirs


def test_spans_and_tags_are_inverse() -> None:
    spans = [(0, 1, "A"), (1, 3, "A"), (5, 6, "B")]
    assert bio_of(spans, 7) == ["B-A", "B-A", "I-A", "O", "O", "B-B", "O"]
    assert spans_of(bio_of(spans, 7)) == spans


def test_labels_of_types() -> None:
    assert entity_labels({"b", "a"}) == ["O", "B-a", "I-a", "B-b", "I-b"]
