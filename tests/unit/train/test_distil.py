"""A student's training with a teacher, from files to a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from filbert import load
from filbert.bundle import read_manifest
from filbert.errors import UsageError
from filbert.text import BertTokenizer
from filbert.train.classify import build, read_data, train_classify
from filbert.train.options import ClassifyOptions
from filbert.train.tune import Machine
from tests.tiny import VOCABULARY, reviews, save_base

CPU = Machine(torch.device("cpu"), torch.float32, "asked for")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, data, and a teacher that has learned them: with a vocabulary in another order."""
    folder = tmp_path_factory.mktemp("distil")
    save_base(folder / "base")
    reviews(folder / "train.csv", 240)
    reviews(folder / "dev.csv", 80, seed=1)
    big = save_base(folder / "big", hidden_size=48, num_hidden_layers=3, seed=3)
    BertTokenizer([*VOCABULARY[:5], *reversed(VOCABULARY[5:])]).save_pretrained(big)
    options = ClassifyOptions(
        data=str(folder / "train.csv"), dev=str(folder / "dev.csv"), base=str(big), epochs=6,
        lr=2e-3, out=str(folder / "teacher"), tensorboard=False, precision="float32",
        batch_tokens=128, dropout=0.0,
    )  # fmt: skip
    assert train_classify(options, quiet=True).scores["accuracy"] == 1.0
    return folder


def asked(place: Path, out: str, **changes: Any) -> ClassifyOptions:
    values: dict[str, Any] = {
        "data": str(place / "train.csv"), "dev": str(place / "dev.csv"), "limit": 24,
        "base": str(place / "base"), "out": str(place / out), "teacher": str(place / "teacher"),
        "epochs": 3, "lr": 2e-3, "tensorboard": False, "precision": "float32", "dropout": 0.0,
        "batch_tokens": 128,
    }  # fmt: skip
    return ClassifyOptions(**{**values, **changes})


@pytest.fixture(scope="module")
def unlabelled(place: Path) -> Path:
    """600 texts without labels."""
    lines = reviews(place / "more.csv", 600, seed=9).read_text("utf-8").splitlines()[1:]
    path = place / "more.txt"
    path.write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n", "utf-8")
    return path


def test_texts_without_labels_teach(place: Path, unlabelled: Path) -> None:
    """24 labelled rows are too few; with the teacher's word on 600 others the student learns."""
    alone = train_classify(asked(place, "alone", teacher=None), quiet=True)
    taught = train_classify(asked(place, "taught", unlabelled=str(unlabelled)), quiet=True)
    assert taught.scores["accuracy"] > 0.95 > 0.8 > alone.scores["accuracy"]
    origin = read_manifest(place / "taught").provenance
    assert (origin["rows"], origin["unlabelled_rows"]) == (24, 600)
    assert origin["teacher"] == str(place / "teacher") and len(origin["teacher_sha256"]) == 64


def test_hidden_states_leave_nothing_in_the_bundle(place: Path, unlabelled: Path) -> None:
    options = asked(place, "hidden", unlabelled=str(unlabelled), distil_hidden=1.0, epochs=1)
    train_classify(options, quiet=True)
    with safe_open(str(place / "hidden" / "model.safetensors"), "pt") as file:
        assert not [name for name in file.keys() if "distil" in name]  # noqa: SIM118
    assert load(place / "hidden")("the film was good")["label"] in ("pos", "neg")


@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_the_loss_is_the_sum_of_its_parts(place: Path, unlabelled: Path, hidden: float) -> None:
    """Weight 0 on labelled rows is the plain loss; hidden states add theirs."""
    common = {"unlabelled": str(unlabelled), "distil_hidden": hidden}
    rows = np.arange(12)
    sums = {}
    for weight in (0.0, 0.5, 1.0):
        options = asked(place, "none", distil_weight=weight, **common)
        data = read_data(options)
        torch.manual_seed(0)
        job = build(options, data, CPU)
        job.model.eval()
        sums[weight] = job.batch_loss(job.model, rows)[0].item()
        assert len(job.tokens) == 24 + 600
        assert job.names(np.array([3, 24, 25])) == [
            f"{options.data}:4", f"{unlabelled}:1", f"{unlabelled}:2",
        ]  # fmt: skip
    assert sums[0.5] == pytest.approx((sums[0.0] + sums[1.0]) / 2, rel=1e-5)
    plain = asked(place, "none", teacher=None)
    torch.manual_seed(0)
    job = build(plain, read_data(plain), CPU)
    alone = job.batch_loss(job.model.eval(), rows)[0].item()
    if hidden:
        assert sums[0.0] > alone + 1e-3
    else:
        assert sums[0.0] == pytest.approx(alone, rel=1e-5)


def test_a_student_that_is_its_teacher_pays_nothing(place: Path) -> None:
    options = asked(
        place, "none", base=str(place / "teacher"), distil_weight=1.0, distil_hidden=1.0
    )
    data = read_data(options)
    job = build(options, data, CPU)
    teacher = load(place / "teacher", precision="float32")
    job.model.classifier.load_state_dict(teacher.model.classifier.state_dict())
    assert job.batch_loss(job.model.eval(), np.arange(24))[0].item() == pytest.approx(0, abs=1e-4)


def test_attention_maps_are_learned(place: Path) -> None:
    """From a teacher of the same vocabulary: the loss is 0 for the teacher itself, and more for
    other weights; and a run with them ends in a plain classifier."""
    values: dict[str, Any] = {
        "base": str(place / "teacher"),
        "distil_weight": 1.0,
        "distil_attention": 5.0,
    }
    options = asked(place, "attentive", **values)
    job = build(options, read_data(options), CPU)
    teacher = load(place / "teacher", precision="float32")
    job.model.classifier.load_state_dict(teacher.model.classifier.state_dict())
    rows = np.arange(24)
    assert job.batch_loss(job.model.eval(), rows)[0].item() == pytest.approx(0, abs=1e-4)
    key = job.model.bert.encoder.layer[2].attention.self.key
    with torch.no_grad():
        key.weight.mul_(-2)
    more = job.batch_loss(job.model, rows)[0].item()
    options = options.model_copy(update={"distil_attention": 0.0})
    job.model.zero_grad()
    plain = build(options, read_data(options), CPU)
    plain.model.load_state_dict(job.model.state_dict())
    assert more > plain.batch_loss(plain.model.eval(), rows)[0].item() + 1e-3
    result = train_classify(asked(place, "attentive", **values, epochs=1), quiet=True)
    assert read_manifest(result.out).provenance["distil_attention"] == 5.0
    with safe_open(result.out / "model.safetensors", "pt") as file:
        assert not any("distil" in name for name in file.keys())  # noqa: SIM118


def test_attention_maps_ask_for_equal_tokens(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has another vocabulary than --base"):
        train_classify(asked(place, "none", distil_attention=1.0), quiet=True)
    options = asked(place, "none", base=str(place / "teacher"), distil_attention=1.0, max_length=20)
    with pytest.raises(UsageError, match="give --max-length and --stride as the teacher has"):
        train_classify(options, quiet=True)


def test_the_teacher_answers_once_for_all_seeds(place: Path) -> None:
    options = asked(place, "none")
    data = read_data(options)
    first = build(options, data, CPU)
    taught = data.taught
    second = build(options.model_copy(update={"seed": 43}), data, CPU)
    assert data.taught is taught and taught is not None and taught.shape == (24, 2)
    assert any("answered 24 examples" in line for line in first.lines)
    assert not any("answered" in line for line in second.lines)


def test_another_teacher_is_other_data(place: Path, tmp_path: Path) -> None:
    """A run is resumed with the teacher that it began with."""
    digest = read_data(asked(place, "none")).digest()
    assert digest != read_data(asked(place, "none", teacher=None)).digest()
    other = tmp_path / "teacher"
    shutil.copytree(place / "teacher", other)
    assert read_data(asked(place, "none", teacher=str(other))).digest() == digest
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert read_data(asked(place, "none", teacher=str(other))).digest() != digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": None, "distil_hidden": 1.0}, "--distil-hidden: a teacher"),
        ({"teacher": None, "unlabelled": "x.txt"}, "--unlabelled: a teacher"),
        ({"distil_hidden": 1.0, "attention": "eager"}, "leave --attention eager out"),
    ],
)
def test_options_that_do_not_go_together(place: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_data(asked(place, "none", **changes))


def test_other_labels_are_told_before_anything_is_written(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    rows = reviews(path, 40).read_text("utf-8") + "the film,none\nthe book,none\n"
    path.write_text(rows, "utf-8")
    with pytest.raises(UsageError, match="the teacher lacks none"):
        train_classify(asked(place, "nowhere", data=str(path), limit=None), quiet=True)
    assert not (place / "nowhere").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("distil_weight", 0.9),
        ("distil_temperature", 3.0),
        ("distil_hidden", 1.0),
        ("distil_attention", 1.0),
    ],
)
def test_what_is_learned_from_a_teacher_asks_for_one(
    place: Path, option: str, value: float
) -> None:
    flag = f"--{option.replace('_', '-')}"
    with pytest.raises(UsageError, match=f"{flag}: a teacher has to be named"):
        train_classify(asked(place, "none", teacher=None, **{option: value}), quiet=True)


def test_a_teacher_in_the_output_folder_is_not_deleted(place: Path) -> None:
    weights = place / "teacher" / "model.safetensors"
    before = weights.read_bytes()
    options = asked(place, "teacher", overwrite=True)
    with pytest.raises(UsageError, match=r"--teacher .* lies in --out .* would be deleted"):
        train_classify(options, quiet=True)
    assert weights.read_bytes() == before
