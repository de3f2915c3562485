"""Tagging from a file to answers: training, the bundle, prediction, evaluation."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filbert import load
from filbert.bundle import read_manifest
from filbert.cli_predict import predict
from filbert.errors import FilbertError, UsageError
from filbert.infer.evaluate import evaluate
from filbert.infer.inspect import inspect_text
from filbert.infer.predict_options import PredictOptions
from filbert.infer.tag import Tagger
from filbert.model.bert import BertConfig, BertForPreTraining
from filbert.model.crf import BertCrfForTokenClassification
from filbert.text import BertTokenizer
from filbert.train.tag import build, read_data, train_tag
from filbert.train.tag_options import TagOptions
from filbert.train.tune import Machine

pytest.importorskip("seqeval")

FIRST, LAST = ["ann", "bob", "张", "李"], ["lee", "kim", "王", "明"]
PLACES, OTHER = ["rome", "oslo", "京", "沪"], ["in", "saw", "去"]
KNOWN = [*FIRST, *LAST, *PLACES, *OTHER]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *KNOWN, "##x", "-", "bay", "."]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=24, initializer_range=0.1,
    )  # fmt: skip
    BertForPreTraining(config).save_pretrained(folder)
    BertTokenizer(VOCABULARY).save_pretrained(folder)
    return folder


def sentences(count: int, seed: int) -> list[list[tuple[str, str]]]:
    """Words with BIO tags; a person of two words, a place of one, or of parts (`rome-bay`)."""
    draw = random.Random(seed)
    out = []
    for _ in range(count):
        row: list[tuple[str, str]] = []
        for _ in range(draw.randint(1, 4)):
            row.append((draw.choice([*OTHER, "unknown"]), "O"))
            if draw.random() < 0.5:
                row += [(draw.choice(FIRST), "B-PER"), (draw.choice(LAST), "I-PER")]
            else:
                place = draw.choice(PLACES)
                row.append((f"{place}-bay" if draw.random() < 0.3 else place, "B-LOC"))
        out.append([*row, (".", "O")])
    return out


def conll(path: Path, rows: list[list[tuple[str, str]]]) -> Path:
    path.write_text("\n\n".join("\n".join(f"{w}\t{t}" for w, t in row) for row in rows), "utf-8")
    return path


def options(base: Path, folder: Path, **changes: Any) -> TagOptions:
    values: dict[str, Any] = {
        "data": str(conll(folder / "train.conll", sentences(150, 0))),
        "dev": str(conll(folder / "dev.conll", sentences(40, 1))),
        "base": str(base), "out": str(folder / "run"), "epochs": 10, "lr": 3e-3,
        "batch_size": 16, "dropout": 0.0, "stride": 4, "device": "cpu", "precision": "float32",
        "tensorboard": False, **changes,
    }  # fmt: skip
    return TagOptions(**values)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tag")
    test = conll(folder / "test.conll", sentences(40, 2))
    result = train_tag(options(base, folder, test=str(test)), quiet=True)
    assert result.scores["f1"] is not None
    assert result.scores["f1"] > 0.95
    return result.out


def spans(answer: dict[str, Any]) -> list[tuple[int, int, str, str]]:
    return [(s["start"], s["end"], s["text"], s["label"]) for s in answer["spans"]]


def test_raw_text_english_and_chinese(run: Path) -> None:
    tag = load(run, device="cpu", precision="float32")
    assert isinstance(tag, Tagger)
    text = "In  Ann Lee saw Rome-Bay. 去张王去京."
    assert spans(tag(text)) == [
        (4, 11, "Ann Lee", "PER"),
        (16, 24, "Rome-Bay", "LOC"),
        (27, 29, "张王", "PER"),
        (30, 31, "京", "LOC"),
    ]
    many = tag([text, "", "in in ."])
    assert many[0] == tag(text)
    assert many[1:] == [{"spans": []}, {"spans": []}]
    assert all(0.5 < span["score"] <= 1 for span in many[0]["spans"])
    assert tag.line(many[0], text).startswith("PER: Ann Lee (")
    assert tag.line(many[1]) == "(none)"


def test_given_words_stay_as_they_are(run: Path) -> None:
    tag = load(run, device="cpu", precision="float32")
    (ann, place) = tag({"tokens": ["in", "ann", "lee", "\u200b", "saw", "rome-bay"]})["spans"]
    assert (ann["text"], ann["words"], ann["label"]) == ("ann lee", [1, 3], "PER")
    assert (place["text"], place["words"], place["label"]) == ("rome-bay", [5, 6], "LOC")


def test_a_text_of_many_windows_is_answered_as_short_ones_are(run: Path) -> None:
    tag = load(run, device="cpu", precision="float32")
    sentence = "in ann lee saw oslo. "
    found = tag(sentence * 40)["spans"]
    assert len(found) == 80
    for number, span in enumerate(found):
        start = number // 2 * len(sentence)
        place = (3, 10, "PER") if number % 2 == 0 else (15, 19, "LOC")
        assert (span["start"] - start, span["end"] - start, span["label"]) == place


def test_wrong_inputs_name_their_position(run: Path) -> None:
    tag = load(run, device="cpu", precision="float32")
    for rows, message in [
        (["a", None], "item 1: expected a text"),
        ([["a", "b"]], r'item 0: .*\{"tokens"'),
        ([{"tokens": ["a", 1]}], "item 0: expected"),
        ("\ud800", "item 0: half of a surrogate"),
        (3, "a text or a list of texts"),
    ]:
        with pytest.raises(FilbertError, match=message):
            tag(rows)


def test_evaluation_equals_that_of_training_and_reads_spans(run: Path, tmp_path: Path) -> None:
    tag = load(run, device="cpu", precision="float32")
    found = tag.evaluate(run.parent / "test.conll")
    written = json.loads((run / "evaluation.json").read_text())
    assert found["scores"] == pytest.approx(written["scores"], abs=1e-6)
    assert set(found["per_class"]) == {"LOC", "PER"}
    assert found["rows"] == 40
    row = {"text": "In Ann Lee. 去京", "spans": [[3, 10, "PER"], [13, 14, "LOC"]]}
    data = tmp_path / "spans.jsonl"
    data.write_text(json.dumps(row) + "\n")
    assert tag.evaluate(data)["scores"]["f1"] == 1.0
    # answers go back in as they are
    data.write_text(json.dumps({"text": row["text"], **tag(row["text"])}) + "\n")
    assert tag.evaluate(data, strict=True)["scores"]["f1"] == 1.0
    data.write_text(json.dumps({"text": "a b", "spans": [[0, 1, "ORG"]]}) + "\n")
    with pytest.raises(FilbertError, match=r"spans\.jsonl:1: the type 'ORG' is unknown"):
        tag.evaluate(data)


def test_transformers_opens_the_bundle_with_its_labels(run: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(run)
    assert theirs.config.id2label == {0: "O", 1: "B-LOC", 2: "I-LOC", 3: "B-PER", 4: "I-PER"}
    assert "token-classification" in (run / "README.md").read_text("utf-8")


def test_spans_as_training_data_and_holdout(base: Path, tmp_path: Path) -> None:
    rows = []
    for row in sentences(120, 5):
        text, found = "", []
        for word, label in row:
            begin = len(text) + 1 if text else 0
            text = f"{text} {word}" if text else word
            if label.startswith("B-"):
                found.append([begin, len(text), label[2:]])
            elif label.startswith("I-"):
                found[-1][1] = len(text)
        rows.append({"text": text, "spans": found})
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = train_tag(options(base, tmp_path, data=str(data), dev=None), quiet=True)
    assert result.scores["f1"] is not None
    assert result.scores["f1"] > 0.9
    assert spans(load(result.out)("saw bob lee in rome .")) == [
        (4, 11, "bob lee", "PER"),
        (15, 19, "rome", "LOC"),
    ]


def test_a_crf(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train_tag(options(base, tmp_path, crf=True), quiet=True)
    assert result.scores["f1"] is not None
    assert result.scores["f1"] > 0.9
    tag = load(result.out, device="cpu", precision="float32")
    assert isinstance(tag.model, BertCrfForTokenClassification)
    assert tag.model.head.transitions.abs().max() > 0.01  # it has learned something
    assert spans(tag("in ann lee saw rome."))[0] == (3, 10, "ann lee", "PER")
    # the folder as the verbs find it
    predict(PredictOptions(bundle=str(result.out), texts=["in ann lee saw rome."]), True)
    shown = json.loads(capsys.readouterr().out)
    assert spans(shown) == spans(tag("in ann lee saw rome."))
    record = evaluate(result.out, tmp_path / "dev.conll", precision="float32", device="cpu")
    assert record["scores"]["f1"] == pytest.approx(result.scores["f1"])
    found = inspect_text(result.out, "in ann lee saw rome.")
    assert found.kind == "tag" and found.stations[-1].name == "head"
    assert found.parameters == sum(p.numel() for p in tag.model.parameters())


def test_plain_labels_for_each_word(base: Path, tmp_path: Path) -> None:
    def plain(count: int, seed: int) -> list[list[tuple[str, str]]]:
        names = {**dict.fromkeys(FIRST + LAST + PLACES, "NOUN"), **dict.fromkeys(OTHER, "VERB")}
        return [[(word, names.get(word, "X")) for word, _ in row] for row in sentences(count, seed)]

    data, dev = tmp_path / "a.conll", tmp_path / "b.conll"
    conll(data, plain(100, 0))
    conll(dev, plain(30, 1))
    result = train_tag(
        options(base, tmp_path, data=str(data), dev=str(dev), metric="f1_macro"), quiet=True
    )
    assert any("labels without B- and I-" in note for note in result.notes)
    tag = load(result.out, device="cpu", precision="float32")
    answer = tag("saw Ann, 去京")
    assert [(w["text"], w["label"]) for w in answer["words"]][:2] == [
        ("saw", "VERB"), ("Ann", "NOUN"),
    ]  # fmt: skip
    assert [w["start"] for w in answer["words"]] == [0, 4, 7, 9, 10]
    assert tag.evaluate(dev)["scores"]["accuracy"] > 0.9
    assert tag.line(answer).startswith("saw/VERB Ann/NOUN")


def test_a_tagger_learns_from_a_tagger(base: Path, run: Path, tmp_path: Path) -> None:
    """Where the labels of the training file are wrong and the teacher alone counts, the student
    still gets them right; its vocabulary has another order than the teacher's."""
    turned = tmp_path / "turned"
    shutil.copytree(base, turned)
    BertTokenizer([*VOCABULARY[:5], *reversed(VOCABULARY[5:])]).save_pretrained(turned)
    swapped = {"B-PER": "B-LOC", "I-PER": "I-LOC", "B-LOC": "B-PER", "I-LOC": "I-PER", "O": "O"}
    wrong = [[(word, swapped[tag]) for word, tag in row] for row in sentences(150, 0)]
    data = conll(tmp_path / "wrong.conll", wrong)
    changes = {"data": str(data), "teacher": str(run), "distil_weight": 1.0, "slots": "first"}
    result = train_tag(options(turned, tmp_path, **changes), quiet=True)
    assert result.scores["f1"] is not None
    assert result.scores["f1"] > 0.9
    assert read_manifest(result.out).provenance["distil_weight"] == 1.0


def test_a_tagger_that_is_its_teacher_pays_nothing(run: Path, tmp_path: Path) -> None:
    """And half of its labels' loss at half the weight; each later part of a word keeps all."""
    import torch

    machine = Machine(torch.device("cpu"), torch.float32, "asked for")
    losses = {}
    for slots in ("first", "parts"):
        for weight in (0.0, 0.5, 1.0):
            asked = options(run, tmp_path, teacher=str(run), slots=slots, distil_weight=weight)
            data = read_data(asked)
            job = build(asked, data, machine)
            head = load(run, device="cpu", precision="float32").model.classifier
            job.model.classifier.load_state_dict(head.state_dict())
            tallies = job.batch_loss(job.model.eval(), np.arange(40))[0]
            losses[slots, weight] = tallies.item()
    assert losses["first", 1.0] == pytest.approx(0, abs=1e-4)
    assert losses["first", 0.5] == pytest.approx(losses["first", 0.0] / 2, rel=1e-3)
    assert losses["parts", 1.0] > 1e-3  # `-` and `bay` of rome-bay learn from the labels alone


def test_teachers_that_do_not_fit(base: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--distil-weight: a teacher has to be named"):
        train_tag(options(base, tmp_path, distil_weight=0.9), quiet=True)
    with pytest.raises(UsageError, match="--crf does not learn word by word"):
        train_tag(options(base, tmp_path, teacher=str(run), crf=True), quiet=True)
    with pytest.raises(UsageError, match="a tagger learns from a tagger"):
        train_tag(options(base, tmp_path, teacher=str(base)), quiet=True)
    crf = train_tag(options(base, tmp_path, crf=True, epochs=1), quiet=True).out
    fewer = [[(w, t if "PER" in t else "O") for w, t in row] for row in sentences(50, 0)]
    data = conll(tmp_path / "fewer.conll", fewer)
    more = {"out": str(tmp_path / "other"), "dev": None}
    with pytest.raises(UsageError, match="whose answers are of whole sentences"):
        train_tag(options(base, tmp_path, teacher=str(crf), **more), quiet=True)
    with pytest.raises(UsageError, match="the training file lacks B-LOC, I-LOC"):
        train_tag(options(base, tmp_path, teacher=str(run), **more, data=str(data)), quiet=True)
    assert not (tmp_path / "other").exists()


def test_what_is_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'f2': for these labels there are accuracy, f1"):
        train_tag(options(base, tmp_path, metric="f2"), quiet=True)
    test = conll(tmp_path / "test.conll", [[("ann", "B-ORG")]])
    with pytest.raises(FilbertError, match=r"test\.conll:1: the type 'ORG' is unknown"):
        train_tag(options(base, tmp_path, test=str(test)), quiet=True)
    data = conll(tmp_path / "none.conll", [[("ann", "O")], [("bob", "O")]])
    with pytest.raises(FilbertError, match="holds no entity"):
        train_tag(options(base, tmp_path, data=str(data)), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_type_that_is_held_out_is_known(base: Path, tmp_path: Path) -> None:
    """The tenth that is held out is the same one always; here it has the only one of its type."""
    rows = [[("ann", "B-PER"), ("saw", "O")] for _ in range(20)]
    for place in range(20):
        marked = [*rows[:place], [("rome", "B-LOC"), ("saw", "O")], *rows[place + 1 :]]
        given = options(base, tmp_path, data=str(conll(tmp_path / f"{place}.conll", marked)))
        data = read_data(given.model_copy(update={"dev": None}))
        assert data.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
