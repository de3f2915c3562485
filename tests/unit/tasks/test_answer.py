"""Question answering: targets, loss, best spans, exact places, silence and confidence."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from filbert.bundle import Manifest
from filbert.data.questions import Gold, Questions
from filbert.errors import FilbertError
from filbert.tasks import answer
from filbert.tasks.answer_spans import AnswerSettings, Spans, probabilities
from filbert.text import BertTokenizer
from filbert.text.passages import Passages

HAN = "台灣大學位於臺北市，創立於１９２８年。"
MIXED = "Cafe\u0301 noir by 👩\u200d💻 in İstanbul costs 3.50€ (naïve) — " + HAN


def asked(contexts: list[str], *rows: tuple[int, str, list[Gold]]) -> Questions:
    return Questions(
        contexts, np.array([row[0] for row in rows]), [row[1] for row in rows],
        [str(i) for i in range(len(rows))], [row[2] for row in rows],
        [f"question {i}" for i in range(len(rows))], "test.json",
    )  # fmt: skip


def gold(context: str, text: str) -> Gold:
    return Gold(text, context.index(text))


# --- targets ------------------------------------------------------------------------------------


def test_targets_point_to_the_answer_in_every_window_that_holds_it(minilm: Path) -> None:
    tokenizer = BertTokenizer.from_pretrained(minilm)
    long = "one two three four five six seven eight nine ten eleven twelve."
    questions = asked(
        [MIXED, long],
        (0, "Where?", [gold(MIXED, "臺北市")]),
        (0, "What?", [gold(MIXED, "Cafe\u0301 noir")]),
        (1, "Which?", [gold(long, "six seven")]),
        (1, "None?", []),
        (1, "Unknown place?", [Gold("six", None)]),
        (1, "A blank?", [Gold(" ", 3)]),
        (1, "Second one is known?", [Gold("six", None), gold(long, "twelve")]),
    )
    flat = answer.encode(tokenizer, questions, max_length=20, stride=6)
    places, usable = answer.targets(flat, questions)
    hits = collections.Counter()
    for w, (first, last) in enumerate(places.tolist()):
        q = flat.asked[w]
        a, b = flat.window_starts[w], flat.window_starts[w + 1]
        if first or last:
            hits[int(q)] += 1
            shift = flat.token_from[w] - flat.context_at[w]
            begin, end = flat.spans[first + shift, 0], flat.spans[last + shift, 1]
            context = questions.contexts[questions.owner[q]]
            want = {0: "臺北市", 1: "Cafe\u0301 noir", 2: "six seven", 6: "twelve"}[int(q)]
            assert context[begin:end] == want
            assert flat.context_at[w] <= first <= last < b - a - 1
    assert hits == {0: 2, 1: 1, 2: 1, 6: 2}
    assert not any(hits[q] for q in (3, 4, 5))
    unusable = {int(q) for q, good in zip(flat.asked, usable, strict=True) if not good}
    assert unusable == {4, 5}


def test_targets_as_a_plain_walk_over_the_tokens(minilm: Path) -> None:
    """The same rule written as Transformers' run_qa prepares its features, token by token."""
    tokenizer = BertTokenizer.from_pretrained(minilm)
    draw = np.random.default_rng(0)
    contexts = [MIXED * 2, "the quick brown unbelievable fox jumped over it " * 12]
    rows = []
    for _ in range(60):
        number = int(draw.integers(2))
        begin = int(draw.integers(len(contexts[number]) - 30))
        text = contexts[number][begin : begin + int(draw.integers(1, 30))]
        if text.strip() and text[0].isalnum() and text[-1].isalnum():
            rows.append((number, "Who is it?", [Gold(text, begin)]))
    questions = asked(contexts, *rows)
    flat = answer.encode(tokenizer, questions, max_length=40, stride=10)
    places, usable = answer.targets(flat, questions)
    assert usable.all() and (places > 0).any()
    for w, found in enumerate(places.tolist()):
        answer_gold = questions.answers[flat.asked[w]][0]
        assert answer_gold.start is not None
        begin, end = answer_gold.start, answer_gold.start + len(answer_gold.text)
        count = int(flat.token_count[w])
        spans = flat.spans[flat.token_from[w] :][:count].tolist()
        everywhere = flat.spans[flat.context_starts[questions.owner[flat.asked[w]]] :].tolist()
        first = next(i for i, span in enumerate(everywhere) if span[1] > begin)
        first -= int(flat.token_from[w] - flat.context_starts[questions.owner[flat.asked[w]]])
        inside = [i for i, span in enumerate(spans) if span[0] < end and span[1] > begin]
        covered = 0 <= first < count and spans[-1][1] >= end
        at = int(flat.context_at[w])
        assert found == ([first + at, inside[-1] + at] if covered else [0, 0])


# --- loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_cross_entropy_of_each_window(smoothing: float) -> None:
    torch.manual_seed(0)
    lengths = [5, 9, 3]
    start, end = torch.randn(2, 17).requires_grad_()
    places = torch.tensor([[1, 4], [0, 0], [2, 2]])
    found = answer.loss(start, end, torch.tensor(lengths), places, label_smoothing=smoothing)
    want = [
        (
            F.cross_entropy(a, p[0], label_smoothing=smoothing)
            + F.cross_entropy(b, p[1], label_smoothing=smoothing)
        )
        / 2
        for a, b, p in zip(start.split(lengths), end.split(lengths), places, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(want))
    found.sum().backward()


# --- best spans ---------------------------------------------------------------------------------


def run_qa(
    flat: Passages, logits: Any, question: int, *, n_best: int, longest: int, null: bool
) -> list[tuple[float, int, int]]:
    """The plain twin, after Transformers' run_qa post-processing: loops over pairs of the best
    starts and ends of each window. (score, begin, end) of the best, -1 for "no answer"."""
    found, lowest = [], None
    for w in range(flat.question_windows[question], flat.question_windows[question + 1]):
        a, b = flat.window_starts[w], flat.window_starts[w + 1]
        start, end = logits[0][a:b], logits[1][a:b]
        places: list[Any] = [None] * (b - a)
        at = flat.context_at[w]
        for i in range(flat.token_count[w]):
            places[at + i] = flat.spans[flat.token_from[w] + i].tolist()
        silent = float(start[0]) + float(end[0])
        lowest = silent if lowest is None else min(lowest, silent)
        for i in np.argsort(start)[-1 : -n_best - 1 : -1].tolist():
            for j in np.argsort(end)[-1 : -n_best - 1 : -1].tolist():
                if places[i] is None or places[j] is None:
                    continue
                if j < i or j - i + 1 > longest:
                    continue
                found.append((float(start[i]) + float(end[j]), places[i][0], places[j][1]))
    if null and lowest is not None:
        found.append((lowest, -1, -1))
    return sorted(found, reverse=True)[:n_best]


@pytest.mark.parametrize("seed", range(4))
def test_best_spans_as_the_plain_twin(minilm: Path, seed: int) -> None:
    tokenizer = BertTokenizer.from_pretrained(minilm)
    contexts = [MIXED * 4, HAN * 20, "x", "the quick brown fox " * 200, "short text here"]
    rows = [(n % len(contexts), "Who was it " + "then " * n, []) for n in range(12)]
    questions = asked(contexts, *rows)
    flat = answer.encode(tokenizer, questions, max_length=64 if seed % 2 else 384, stride=20)
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 4, (2, len(flat.ids))).astype(np.float32)
    spans = answer.find(flat, logits, max_answer_tokens=30)
    texts = [contexts[n] for n in questions.owner]
    answers = answer.decode(spans, texts, AnswerSettings())
    with_null = AnswerSettings(no_answer=True)
    silent = spans.silent(with_null)
    for q in range(len(questions)):
        twin = run_qa(flat, logits, q, n_best=20, longest=30, null=False)
        if not twin:
            assert spans.begin[q, 0] == -1 and answers[q]["answer"] == ""
            continue
        best = texts[q][twin[0][1] : twin[0][2]]
        assert answers[q]["answer"].startswith(best)  # combining marks may follow
        assert (spans.begin[q, 0], spans.end[q, 0]) == twin[0][1:]
        assert spans.score[q, 0] == pytest.approx(twin[0][0])
        distinct = list(dict.fromkeys(span[1:] for span in twin))
        mine = list(zip(spans.begin[q].tolist(), spans.end[q].tolist(), strict=True))
        assert mine[: len(distinct)] == distinct
        whole = run_qa(flat, logits, q, n_best=10**6, longest=30, null=True)
        null = next(span[0] for span in whole if span[1] == -1)
        assert spans.null[q] == pytest.approx(null)
        assert silent[q] == (null > twin[0][0])


def test_answers_are_where_they_say(minilm: Path) -> None:
    tokenizer = BertTokenizer.from_pretrained(minilm)
    questions = asked([MIXED, "\u0301\u0302"], (0, "Where?", []), (1, "What?", []))
    flat = answer.encode(tokenizer, questions, max_length=384, stride=128)
    begins = flat.spans[: flat.context_starts[1]]
    for want in ("Cafe\u0301", "👩\u200d💻", "İstanbul", "臺北市", "naïve", "１９２８年"):
        at = MIXED.index(want)
        first = int(np.flatnonzero(begins[:, 1] > at)[0])
        last = int(np.flatnonzero(begins[:, 0] < at + len(want))[-1])
        logits = np.zeros((2, len(flat.ids)), np.float32)
        logits[0, flat.context_at[0] + first] = logits[1, flat.context_at[0] + last] = 9
        spans = answer.find(flat, logits, max_answer_tokens=30)
        found, nothing = answer.decode(spans, [MIXED, "\u0301\u0302"], AnswerSettings(), n_best=3)
        assert found["answer"] == want
        assert MIXED[found["start"] : found["end"]] == want
        assert [c["score"] for c in found["candidates"]] == sorted(
            (c["score"] for c in found["candidates"]), reverse=True
        )
        for item in found["candidates"]:
            assert MIXED[item["start"] : item["end"]] == item["answer"]
        assert nothing["answer"] == "" and nothing["start"] is None and nothing["score"] == 1.0


# --- silence and confidence ---------------------------------------------------------------------


def made(score: list[list[float]], null: list[float]) -> Spans:
    array = np.array(score, float)
    begin = np.where(np.isfinite(array), np.arange(array.shape[1]), -1)
    return Spans(array, begin, np.where(begin >= 0, begin + 1, -1), np.array(null, float))


def test_chances_are_a_softmax_by_hand() -> None:
    spans = made([[2.0, 1.0], [3.0, -np.inf], [-np.inf, -np.inf]], [1.0, 3.0, 0.0])
    e = np.exp
    may = AnswerSettings(no_answer=True)
    sure = probabilities(spans, may, temperature=2.0)
    total = e(0.5) + e(1.0) + e(0.5)
    np.testing.assert_allclose(sure[0], [e(0.5) / total, e(1.0) / total, e(0.5) / total])
    np.testing.assert_allclose(sure[1:], [[0.5, 0.5, 0], [1, 0, 0]])
    shifted = probabilities(spans, may.model_copy(update={"threshold": 1.0}), temperature=1.0)
    np.testing.assert_allclose(shifted[1, :2], [e(2) / (e(2) + e(3)), e(3) / (e(2) + e(3))])
    alone = probabilities(spans, AnswerSettings(), temperature=1.0)
    np.testing.assert_allclose(alone[:2, 0], 0)
    np.testing.assert_allclose(alone[0, 1], e(2) / (e(2) + e(1)))
    np.testing.assert_allclose(alone[2], [1, 0, 0])


def test_threshold_decides_who_stays_silent() -> None:
    spans = made([[2.0], [2.0]], [4.0, 1.0])
    contexts = ["ab", "cd"]
    settings = AnswerSettings(no_answer=True, threshold=0.5)
    found = answer.decode(spans, contexts, settings, n_best=2)
    assert [item["answer"] for item in found] == ["", "c"]
    assert found[0]["score"] == pytest.approx(1 / (1 + np.exp(-1.5)))  # 4 - 0.5 against 2
    assert [c["answer"] for c in found[1]["candidates"]] == ["c", ""]
    bolder = settings.model_copy(update={"threshold": 2.5})
    assert [item["answer"] for item in answer.decode(spans, contexts, bolder)] == ["a", "c"]
    never = AnswerSettings()
    assert [item["answer"] for item in answer.decode(spans, contexts, never)] == ["a", "c"]


def test_fit_finds_threshold_and_temperature() -> None:
    draw = np.random.default_rng(0)
    contexts = ["xy"]
    rows, gaps = [], []
    for n in range(400):
        answerable = n % 2 == 0
        text = "x" if n % 8 else "y"  # 1 in 4 of the answerable ones has another answer
        rows.append((0, "?", [Gold(text, 0)] if answerable else []))
        gaps.append(draw.normal(1.0 if answerable else 5.0, 0.5))
    questions = asked(contexts, *rows)
    spans = made([[10.0]] * 400, [10.0 + gap for gap in gaps])
    settings, temperature = answer.fit(
        spans, questions, rule="squad", no_answer=True, max_answer_tokens=30
    )
    assert 2.0 < settings.threshold < 4.5
    found = answer.decode(spans, ["xy"] * 400, settings, temperature=temperature)
    scores = answer.score(found, questions, rule="squad")
    assert scores["accuracy_unanswerable"] > 0.98
    assert scores["f1_answerable"] == pytest.approx(0.75, abs=0.02)
    # without the fit, a score of near 1 where three in four are right
    sharp = answer.decode(spans, ["xy"] * 400, settings, temperature=0.3)
    assert scores["ece"] < answer.score(sharp, questions, rule="squad")["ece"]
    assert scores["rows"] == 400
    plain, _ = answer.fit(spans, questions, rule="squad", no_answer=False, max_answer_tokens=9)
    assert not plain.no_answer and plain.max_answer_tokens == 9
    wrong = answer.mistakes(found, questions, rule="squad", count=3)
    assert len(wrong) == 3 and wrong[0]["probability"] >= wrong[2]["probability"]
    assert wrong[0]["id"] in questions.ids and wrong[0]["gold"] != wrong[0]["predicted"]


def test_settings_are_closed() -> None:
    good = Manifest(task="answer", settings={"no_answer": True, "threshold": -1.5})
    assert answer.settings_of(good).threshold == -1.5
    for settings in ({"threshhold": 1.0}, {"max_answer_tokens": 0}, {"threshold": "x"}):
        with pytest.raises(FilbertError, match="settings"):
            answer.settings_of(Manifest(task="answer", settings=settings))
