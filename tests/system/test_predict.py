"""Prediction and evaluation: order, and parity with the padded reference.

Every expected answer is computed here one text at a time, with the padded written-out attention
path and numpy; the code under test takes packed batches of many.
"""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from filbert.bundle import open_bundle
from filbert.cli_predict import predict
from filbert.errors import FilbertError, UsageError
from filbert.infer.evaluate import evaluate, evaluation_table
from filbert.infer.predict import Classifier, answer_text, load, windows
from filbert.infer.predict_file import predict_file
from filbert.infer.predict_options import PredictOptions
from filbert.model.bert import BertModel
from tests.tiny_bundle import TEXTS, tiny_bundle, tiny_encoder


def reference_logits(bundle: Path, text: str, pair: str | None = None) -> np.ndarray[Any, Any]:
    """One text, padded grid of one row, written-out attention."""
    opened = open_bundle(bundle)
    opened.model.set_attention("eager")
    encoding = opened.tokenizer(text, pair, return_tensors="pt")
    with torch.no_grad():
        return opened.model(**encoding).logits[0].numpy()


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def test_answers_equal_the_padded_reference(bundle: Path, classifier: Classifier) -> None:
    answers = classifier(TEXTS, all_scores=True)
    assert len(answers) == len(TEXTS)
    for text, answer in zip(TEXTS, answers, strict=True):
        expected = softmax(reference_logits(bundle, text) / 1.5)  # the bundle's temperature
        assert answer["label"] == ("ham", "spam")[int(expected.argmax())]
        assert answer["score"] == pytest.approx(expected.max(), abs=1e-5)
        assert list(answer["scores"]) == ["ham", "spam"]
        assert answer["scores"]["spam"] == pytest.approx(expected[1], abs=1e-5)


def test_the_form_of_the_answer_follows_the_form_of_the_question(classifier: Classifier) -> None:
    one = classifier("free prize call now")
    assert isinstance(one, dict) and set(one) == {"label", "score"}
    (same,) = classifier(["free prize call now"])
    assert same["score"] == pytest.approx(one["score"], abs=1e-6)
    assert classifier([]) == []
    best = classifier("lunch", top_k=1)
    assert list(best["scores"]) == [best["label"]]


def test_a_text_alone_equals_itself_among_many(classifier: Classifier) -> None:
    many = classifier.logits(TEXTS * 5)
    alone = np.concatenate([classifier.logits([text]) for text in TEXTS])
    np.testing.assert_allclose(many, np.tile(alone, (5, 1)), atol=1e-5)


def test_a_long_text_is_the_mean_of_its_windows(bundle: Path, classifier: Classifier) -> None:
    words = [f"{'abcdefghij'[i % 10]}" for i in range(90)]  # one token each; 38 fit a window
    opened = open_bundle(bundle)
    starts = [0, 30, 60]  # 38 tokens a window, 8 of them shared with the one before
    expected = np.mean(
        [reference_logits(bundle, " ".join(words[start : start + 38])) for start in starts], axis=0
    )
    assert len(opened.tokenizer(" ".join(words))["input_ids"]) == 92
    np.testing.assert_allclose(classifier.logits([" ".join(words)])[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("item", "words"),
    [(None, "None"), (3, "int 3"), (b"x", "bytes"), (("a", "b"), "one text, got a pair")],
)
def test_a_wrong_item_is_named_by_its_place(classifier: Classifier, item: Any, words: str) -> None:
    with pytest.raises(FilbertError, match="item 2") as caught:
        classifier(["a", "b", item, "c"])
    assert words in str(caught.value)


def test_wrong_calls_are_told(classifier: Classifier) -> None:
    wrongs: list[Any] = [5, {"text": "a"}, b"a"]
    for wrong in wrongs:
        with pytest.raises(FilbertError, match="expected a text or a list of texts"):
            classifier(wrong)
    with pytest.raises(FilbertError, match="2 texts but 1 second texts"):
        classifier(["a", "b"], pairs=["c"])
    with pytest.raises(UsageError, match="top_k"):
        classifier("a", top_k=0)
    with pytest.raises(UsageError, match="batch_tokens"):
        load("anything", batch_tokens=0)


def test_pairs_in_every_form(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "pairs", pair=True)
    classifier = load(bundle, precision="float32")
    expected = softmax(reference_logits(bundle, "the bank", "the river") / 1.5).max()
    forms = [
        classifier("the bank", "the river"),
        classifier("the bank", pairs="the river"),
        classifier(cast(Any, ("the bank", "the river"))),
        classifier(["the bank"], ["the river"])[0],
        classifier([("the bank", "the river")])[0],
        next(iter(classifier.stream([("the bank", "the river")]))),
    ]
    for answer in forms:
        assert answer["score"] == pytest.approx(expected, abs=1e-5)
    swapped = softmax(reference_logits(bundle, "the river", "the bank") / 1.5).max()
    assert abs(swapped - expected) > 1e-4  # the two places are not the same
    with pytest.raises(FilbertError, match="item 0: this model compares two texts"):
        classifier(["the bank"])
    with pytest.raises(FilbertError, match="item 1: expected a text"):
        classifier(cast(Any, [("a", "b"), ("a", None)]))


def test_several_labels_and_numbers(tmp_path: Path) -> None:
    labels = ("red", "green", "blue")
    kind = "multi_label_classification"
    many = tiny_bundle(
        tmp_path / "many",
        labels=labels,
        problem_type=kind,
        temperature=2.0,
        thresholds=[0.0, 1.0, 0.5],
    )
    answer = load(many, precision="float32")("the river")
    chances = 1 / (1 + np.exp(-reference_logits(many, "the river") / 2.0))
    assert [answer["scores"][label] for label in labels] == pytest.approx(chances, abs=1e-5)
    assert answer["labels"][0] == "red" and "green" not in answer["labels"]
    assert ("blue" in answer["labels"]) == (chances[2] >= 0.5)

    number = tiny_bundle(tmp_path / "number", problem_type="regression")
    value = load(number, precision="float32")("the river")
    expected = float(reference_logits(number, "the river")[0])
    assert value == {"score": pytest.approx(expected, abs=1e-5)}
    assert load(number).logits([]).shape == (0, 1)


def test_a_stream_keeps_order_and_takes_what_it_needs(classifier: Classifier) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for index in itertools.count():
            taken += 1
            yield TEXTS[index % len(TEXTS)]

    first = list(itertools.islice(classifier.stream(endless(), window=64), 100))
    assert taken <= 100 + 64
    expected = classifier(TEXTS)
    for index, answer in enumerate(first):
        assert answer["score"] == pytest.approx(expected[index % len(TEXTS)]["score"], abs=1e-5)
    answered = []
    with pytest.raises(FilbertError, match="item 40:"):
        for answer in classifier.stream(cast(Any, ["a"] * 40 + [None, "b"])):
            answered.append(answer)
    assert len(answered) == 40


def test_windows_grow_to_their_size() -> None:
    assert [len(block) for block in windows(range(200), 64)] == [16, 32, 64, 64, 24]
    assert [len(block) for block in windows(range(5), 2)] == [2, 2, 1]


def test_threads_get_their_own_answers(classifier: Classifier) -> None:
    expected = [answer["score"] for answer in classifier(TEXTS)]
    wrong: list[str] = []

    def work(index: int) -> None:
        for _ in range(10):
            answer = classifier(TEXTS[index])
            if abs(answer["score"] - expected[index]) > 1e-5:
                wrong.append(TEXTS[index])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(TEXTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_bf16_scores_do_not_tie(bundle: Path, classifier: Classifier) -> None:
    dtype, half = torch.bfloat16, open_bundle(bundle)
    classifier16 = Classifier(half, device=torch.device("cpu"), dtype=dtype)
    texts = [f"{a} {b}" for a in "abcdefghij" for b in "klmnopqrst"]
    exact, rounded = classifier.logits(texts), classifier16.logits(texts)
    assert np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 5e-2
    assert len(np.unique(rounded[:, 0])) > 95  # a bfloat16 head would leave about thirty


def test_a_folder_without_a_head_is_told_what_it_is(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "encoder", BertModel)
    with pytest.raises(FilbertError, match=r"BertModel, an encoder without a head.*inspect"):
        load(folder)


def test_a_foreign_folder_without_our_manifest(bundle: Path, classifier: Classifier) -> None:
    foreign = bundle.parent / "foreign"
    foreign.mkdir()
    for path in bundle.iterdir():
        if path.name != "filbert.json":
            (foreign / path.name).write_bytes(path.read_bytes())
    answer = load(foreign, precision="float32")("free prize")
    expected = softmax(classifier.logits(["free prize"])[0])  # no temperature without a manifest
    assert answer["score"] == pytest.approx(expected.max(), abs=1e-5)


def test_answers_as_text() -> None:
    assert answer_text({"label": "spam", "score": 0.5}) == "spam\t0.5000"
    assert answer_text({"label": "spam", "score": 0.5}, ("a", "b")) == "spam\t0.5000\ta | b"
    assert answer_text({"labels": [], "scores": {"x": 0.25}}, "t") == "(none)\tx 0.2500\tt"
    assert answer_text({"score": 3.0}) == "3.0000"


# --- evaluation ----------------------------------------------------------------------------------


def test_evaluation_by_hand(bundle: Path, tmp_path: Path) -> None:
    texts = [
        f"{word} {letter}" for word in ("free", "lunch", "river", "bank") for letter in "abcde"
    ]
    labels = ["ham", "spam", "ham", "ham", "spam"] * 4
    data = tmp_path / "test.csv"
    body = "".join(f"{label},{text}\n" for label, text in zip(labels, texts, strict=True))
    data.write_text("label,text\n" + body, "utf-8")
    result = evaluate(bundle, data, precision="float32", worst=20)

    logits = np.stack([reference_logits(bundle, text) for text in texts])
    gold = np.array([("ham", "spam").index(label) for label in labels])
    chances = np.stack([softmax(row / 1.5) for row in logits])
    predicted = chances.argmax(1)
    assert result["rows"] == 20 and result["data"].endswith("test.csv")
    assert result["scores"]["accuracy"] == pytest.approx((predicted == gold).mean())
    loss = -np.log(chances[np.arange(20), gold]).mean()
    assert result["scores"]["loss"] == pytest.approx(loss, abs=1e-5)
    expected = [[int(((gold == g) & (predicted == p)).sum()) for p in (0, 1)] for g in (0, 1)]
    assert result["confusion"] == expected
    calibration = result["calibration"]
    assert calibration["temperature"] == 1.5

    def error(chances: np.ndarray[Any, Any]) -> float:
        """Guo et al. 2017, equation 3, 15 bins."""
        sure, right = chances.max(1), chances.argmax(1) == gold
        total = 0.0
        for k in range(15):
            inside = (sure > k / 15) & (sure <= (k + 1) / 15)
            if inside.any():
                total += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
        return total

    before = np.stack([softmax(row) for row in logits])
    assert calibration["ece_before"] == pytest.approx(error(before), abs=1e-5)
    assert calibration["ece_after"] == pytest.approx(error(chances), abs=1e-5)
    assert result["scores"]["ece"] == pytest.approx(error(chances), abs=1e-5)
    assert len(result["worst"]) == min(20, int((predicted != gold).sum()))
    json.dumps(result, allow_nan=False)

    from rich.console import Console

    told = io.StringIO()
    Console(width=100, file=told).print(evaluation_table(result))
    assert f"{result['scores']['accuracy']:.4f}" in told.getvalue()
    assert "temperature 1.500" in told.getvalue()


def test_an_unknown_label_is_named(bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "test.csv"
    data.write_text("label,text\nham,a\nspan,b\nspam,c\n", "utf-8")
    with pytest.raises(FilbertError, match=r"test\.csv: .*'span' in row 2\. Did you mean 'spam'"):
        evaluate(bundle, data)


def test_rows_that_do_not_fit_the_model(bundle: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("sentence1,sentence2,label\na,b,ham\nc,d,spam\n", "utf-8")
    with pytest.raises(FilbertError, match="pairs of texts, but this model takes one"):
        evaluate(bundle, pairs)
    other = tiny_bundle(tmp_path / "pairs", pair=True)
    single = tmp_path / "single.csv"
    single.write_text("text,label\na,ham\nc,spam\n", "utf-8")
    with pytest.raises(FilbertError, match="--pair-column"):
        evaluate(other, single)
    assert evaluate(other, pairs)["rows"] == 2


def test_evaluation_of_numbers_and_of_several_labels(tmp_path: Path) -> None:
    number = tiny_bundle(tmp_path / "number", problem_type="regression")
    data = tmp_path / "numbers.csv"
    texts, gold = ["a", "b c", "river", "bank now"], [1.0, 2.5, 0.5, 4.0]
    body = "".join(f"{value},{text}\n" for value, text in zip(gold, texts, strict=True))
    data.write_text("score,text\n" + body, "utf-8")
    result = evaluate(number, data, label_column="score", precision="float32")
    values = np.array([reference_logits(number, text)[0] for text in texts])
    assert result["scores"]["loss"] == pytest.approx(((values - gold) ** 2).mean(), rel=1e-4)
    assert result["scores"]["pearson"] == pytest.approx(np.corrcoef(values, gold)[0, 1], abs=1e-4)
    assert result["calibration"] is None

    kind = "multi_label_classification"
    many = tiny_bundle(tmp_path / "many", labels=("x", "y"), problem_type=kind, temperature=1.0)
    data = tmp_path / "many.jsonl"
    rows = [
        {"text": "a", "labels": ["x"]},
        {"text": "b", "labels": []},
        {"text": "c", "labels": ["x", "y"]},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    result = evaluate(many, data, precision="float32")
    chances = 1 / (1 + np.exp(-np.stack([reference_logits(many, t) for t in "abc"])))
    truth = np.array([[1, 0], [0, 0], [1, 1]])
    hits = int(((chances >= 0.5) & (truth == 1)).sum())
    wrong = int(((chances >= 0.5) != (truth == 1)).sum())
    assert result["scores"]["f1_micro"] == pytest.approx(2 * hits / (2 * hits + wrong))


# --- what must not pass in silence ---------------------------------------------------------------


def test_damaged_weights_are_told(bundle: Path, tmp_path: Path) -> None:
    damaged = load(bundle, device="cpu", precision="float32")
    with torch.no_grad():
        next(iter(damaged.model.parameters())).fill_(float("nan"))
    with pytest.raises(FilbertError, match="weights are damaged"):
        damaged("free prize")
    source = tmp_path / "in.txt"
    source.write_text("free\n", "utf-8")
    with pytest.raises(FilbertError, match="weights are damaged"):
        predict_file(damaged, source, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": 2**40},
        {"threads": "2"},
        {"batch_tokens": True},
        {"device": None},
        {"name": None},
        {"name": b"m"},
        {"precision": None},
    ],
)
def test_wrong_arguments_of_load_are_told(bundle: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(FilbertError, match=r"expected|at most|unknown"):
        load(**{"name": bundle, **wrong})


def test_wrong_arguments_of_calls_are_told(classifier: Classifier) -> None:
    wrongs: list[Any] = [5, "free", None]
    for wrong in wrongs:
        with pytest.raises(FilbertError, match="expected an iterable of texts"):
            list(classifier.stream(wrong))
    with pytest.raises(UsageError, match="top_k must be at least 1"):
        classifier("a", top_k=cast(Any, "x"))


def test_one_text_or_two(tmp_path: Path) -> None:
    pairs, single = tiny_bundle(tmp_path / "pairs", pair=True), tiny_bundle(tmp_path / "single")
    for bundle, values, message in (
        (pairs, {"texts": ["only one"]}, "compares two texts; give the second one with --pair"),
        (single, {"texts": ["a"], "pair": "x"}, "--pair: this model takes one text"),
        (single, {"texts": ["a"], "context": "x"}, "--context: this model takes one text"),
    ):
        with pytest.raises(UsageError, match=message):
            predict(PredictOptions(bundle=str(bundle), **values), False)
