"""Questions in the layouts of SQuAD: what is read, and what is told of files that are wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from filbert.data.questions import Gold, read_questions, split_by_context, stream_unanswered
from filbert.data.tables import BadRow
from filbert.errors import FilbertError, UsageError

TEXT = "Ada wrote it in 1843. 她住在倫敦。"


def squad(*questions: dict[str, Any], context: Any = TEXT) -> dict[str, Any]:
    paragraphs = [{"context": context, "qas": list(questions)}]
    return {"version": "1.1", "data": [{"title": "Ada", "paragraphs": paragraphs}]}


def question(name: str, text: str, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    listed = [{"text": t, "answer_start": s} for t, s in answers]
    return {"id": name, "question": text, "answers": listed, **more}


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return path


def test_squad_layout(tmp_path: Path) -> None:
    content = squad(
        question("a", "Who?", ("Ada", 0)),
        question("b", "Where?", ("倫敦", TEXT.index("倫敦")), ("在倫敦", TEXT.index("在倫敦"))),
        question("c", "Why?", is_impossible=True, plausible_answers=[]),
    )
    content["data"].append(
        {"title": "x", "paragraphs": [{"context": "Other.", "id": 7, "qas": [question("d", "?")]}]}
    )
    found = read_questions(save(tmp_path / "q.json", content))
    assert found.contexts == [TEXT, "Other."]
    assert found.owner.tolist() == [0, 0, 0, 1]
    assert found.texts == ["Who?", "Where?", "Why?", "?"]
    assert found.answers == [[Gold("Ada", 0)], [Gold("倫敦", 25), Gold("在倫敦", 24)], [], []]
    assert found.some_unanswerable
    assert "article 1, paragraph 1, question 2 (id b)" in found.name(1)
    part = found.select([3, 1])
    assert part.contexts == [TEXT, "Other."] and part.owner.tolist() == [1, 0]
    assert part.ids == ["d", "b"] and part.digest() != found.digest()


def test_compressed_and_flat_rows_are_the_same(tmp_path: Path) -> None:
    content = squad(question("a", "Who?", ("Ada", 0)))
    with gzip.open(tmp_path / "q.json.gz", "wt", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
    row = {
        "id": "a", "title": "Ada", "context": TEXT, "question": "Who?",
        "answers": {"text": ["Ada"], "answer_start": [0]},
    }  # fmt: skip
    save(tmp_path / "q.jsonl", row)
    packed, flat = read_questions(tmp_path / "q.json.gz"), read_questions(tmp_path / "q.jsonl")
    assert packed.digest() == flat.digest()


def test_answers_that_are_not_at_their_place(tmp_path: Path) -> None:
    path = save(
        tmp_path / "q.json",
        squad(
            question("a", "Who?", ("Ada", 1)),
            question("b", "Who?", ("Ada", -1), ("Ada", 0)),
            question("c", "Who?", ("Ada", 10**9)),
        ),
    )
    found = read_questions(path)
    assert found.answers[0] == [Gold("Ada", None)]
    assert found.answers[1] == [Gold("Ada", None), Gold("Ada", 0)]
    assert not found.some_unanswerable
    (note,) = found.notes
    assert "3 of 4 answers" in note and "question 1" in note and "'da '" in note
    with pytest.raises(FilbertError, match=r"article 1, paragraph 1, question 1 .*'Ada' is not at"):
        read_questions(path, mismatch="refuse")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds a list; expected"),
        ({"rows": []}, "an object with the keys rows; expected"),
        ({"data": [{"title": "x"}]}, 'article 1: no list "paragraphs"'),
        ({"data": [{"paragraphs": [3]}]}, "article 1, paragraph 1: not an object"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, 'paragraph 1: no list "qas"'),
        ({"data": []}, "holds no questions"),
        (squad(question("a", "Who?", ("Ada", 0)), context="  "), "question 1 .*context is empty"),
        (squad(question("a", "Who?"), context=None), 'no text "context"'),
        (squad(question("a", " ")), '"question" is'),
        (squad({"id": "a", "question": "Who?"}), r'\(id a\): no list "answers"'),
        (squad({"id": "a", "question": "Who?", "answers": ["Ada"]}), "answer 'Ada' has no text"),
        (squad(question("a", "Who?", ("Ada", 0)), question("a", "Why?")), "id 'a' stands at art"),
        (squad(question("a", "half \ud800", ("Ada", 0))), "half of a surrogate pair"),
    ],
)
def test_other_layouts(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(FilbertError, match=message):
        read_questions(path)


def test_no_json_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text('{"data": [', "utf-8")
    with pytest.raises(FilbertError, match="no JSON"):
        read_questions(tmp_path / "q.json")
    with pytest.raises(UsageError, match="no file"):
        read_questions(tmp_path / "none.json")


def test_split_by_context_keeps_texts_apart(tmp_path: Path) -> None:
    paragraphs = [
        {"context": f"Text {n}.", "qas": [question(f"{n}-{k}", "?", ("Text", 0)) for k in range(3)]}
        for n in range(20)
    ]
    path = save(tmp_path / "q.json", {"data": [{"paragraphs": paragraphs}]})
    found = read_questions(path)
    train, dev = split_by_context(found, fraction=0.2)
    assert len(dev.contexts) == 4 and len(train.contexts) == 16
    assert not set(train.contexts) & set(dev.contexts)
    assert sorted(train.ids + dev.ids) == sorted(found.ids)
    again = split_by_context(found, fraction=0.2)[1]
    assert again.digest() == dev.digest()
    with pytest.raises(FilbertError, match="one context"):
        split_by_context(found.select([0, 1]), fraction=0.5)


def test_real_files(shared_data: Path) -> None:
    dev = read_questions(shared_data / "cmrc2018/dev.json.gz")
    assert (len(dev), len(dev.contexts)) == (3219, 848)
    assert "200 of 9,657 answers" in dev.notes[0]
    drcd = read_questions(shared_data / "drcd/dev.json.gz", mismatch="refuse")
    assert len(drcd) == 3524 and not drcd.notes


def test_an_empty_answer_is_counted_and_told(tmp_path: Path) -> None:
    content = squad(
        question("a", "Who?", ("", 0)), question("b", "Who?", (" ", 3), ("Ada", 0)),
        question("c", "Who?"),
    )  # fmt: skip
    path = save(tmp_path / "q.json", content)
    found = read_questions(path)
    assert found.answers == [[], [Gold("Ada", 0)], []]
    (note,) = found.notes
    assert "2 of 3 answers are empty; a question with no other counts as one that its text" in note
    assert "question 1 (Ada) (id a)" in note or "(id a)" in note
    with pytest.raises(FilbertError, match=r"\(id a\): an answer has the text ''"):
        read_questions(path, mismatch="refuse")


def test_questions_to_answer_are_told_one_by_one(tmp_path: Path) -> None:
    content = squad(
        {"id": "a", "question": "Who?"}, {"id": "b", "question": " "}, {"id": "c"}, "d",
        {"id": "a", "question": "When?"}, {"question": "Where?", "answers": "nonsense"},
        {"id": "e", "question": "half \ud83d"},
    )  # fmt: skip
    content["data"][0]["paragraphs"] += [
        {"context": "", "qas": [question("f", "?")]}, {"qas": [question("g", "?")]},
        {"context": "Other.", "qas": [question("h", "?", ("wrong", 99))]},
    ]  # fmt: skip
    path = tmp_path / "q.json"
    path.write_text(json.dumps(content), "utf-8")
    found = list(stream_unanswered(path))
    assert [row.number for row, _, _ in found] == list(range(1, 11))
    place = "article 1, paragraph 1, question"
    names = ["a", "b", "c", f"{place} 4", "a", f"{place} 6", "e", "f", "g", "h"]
    assert [row.values["id"] for row, _, _ in found] == names
    good = {n: (text, context) for n, (_, text, context) in enumerate(found, 1)
            if not isinstance(text, BadRow)}  # fmt: skip
    assert good == {1: ("Who?", TEXT), 6: ("Where?", TEXT), 10: ("?", "Other.")}
    for number, words in (
        (2, f"{place} 2 (Ada): \"question\" is ' '; a text"),
        (3, f'{place} 3 (Ada): "question" is'),
        (4, f"{place} 4 (Ada): not an object"), (5, f"{place} 5 (Ada): the id 'a' stands at"),
        (7, f"{place} 7 (Ada): character 5 of the question is half"),
        (8, "article 1, paragraph 2, question 1 (Ada): the context is empty"),
        (9, 'article 1, paragraph 3, question 1 (Ada): no text "context"'),
    ):  # fmt: skip
        assert found[number - 1][1].startswith(words)
    content["data"].append({"title": "x"})
    with pytest.raises(FilbertError, match='article 2: no list "paragraphs"'):  # before any answer
        path.write_text(json.dumps(content), "utf-8")
        next(stream_unanswered(path))
    with pytest.raises(FilbertError, match="holds no questions"):
        next(stream_unanswered(save(tmp_path / "r.json", {"data": []})))
