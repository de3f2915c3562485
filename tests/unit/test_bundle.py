"""A bundle is written and opened so that its parts fit each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from filbert import load
from filbert.bundle import Manifest, open_bundle, save_bundle
from filbert.errors import FilbertError
from filbert.model.bert import BertForMaskedLM
from filbert.model.seq2seq import BertForSeq2SeqLM
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_config
from tests.tiny_tasks import TASKS, task_bundle


def test_the_tokenizer_cuts_where_the_model_ends(tmp_path: Path) -> None:
    tokenizer = BertTokenizer(VOCABULARY)  # 512 tokens, as always
    model = BertForMaskedLM(tiny_config()).eval()  # 40
    manifest = Manifest(task="fill", max_length=40)
    save_bundle(tmp_path, model=model, tokenizer=tokenizer, manifest=manifest)
    path = tmp_path / "tokenizer_config.json"
    written = json.loads(path.read_text("utf-8"))
    assert written["model_max_length"] == 40 and tokenizer.model_max_length == 512
    path.write_text(json.dumps({**written, "model_max_length": 512}), "utf-8")  # as before
    opened = open_bundle(tmp_path)
    batch = opened.tokenizer("a " * 600, truncation=True, return_tensors="pt")
    assert opened.model(**batch).logits.shape[1] == 40


def test_a_file_is_no_folder_and_nothing_no_name(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    model = BertForMaskedLM(tiny_config())
    with pytest.raises(FilbertError, match="could not write"):
        model.save_pretrained(tmp_path / "taken")
    with pytest.raises(FilbertError, match="could not write"):
        save_bundle(
            tmp_path / "taken", model=model, tokenizer=BertTokenizer(VOCABULARY),
            manifest=Manifest(task="fill"),
        )  # fmt: skip
    wrong: Any
    for wrong in (None, 3, b"runs"):
        for opened in (BertForMaskedLM, BertTokenizer):
            with pytest.raises(FilbertError, match="expected a folder or the name of a model, got"):
                opened.from_pretrained(wrong)


@pytest.mark.parametrize("task", ["classify", "translate"])
def test_architectures_that_are_no_names(task: str, tmp_path: Path) -> None:
    path = task_bundle(tmp_path / "model", task) / "config.json"
    values = json.loads(path.read_text("utf-8"))
    for wrong in (5, True, "BertModel", {"BertModel": 1}, [1], [None]):
        path.write_text(json.dumps({**values, "architectures": wrong}), "utf-8")
        with pytest.raises(FilbertError, match="architectures must be a list of names, or null"):
            load(path.parent)


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        *((task, {}) for task in TASKS),
        ("classify", {"pair": True}),
        ("summarize", {"kind": BertForSeq2SeqLM, "settings": {"max_tokens": 4}}),
    ],
)
def test_the_lines_of_a_model_card_run(
    task: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = task_bundle(tmp_path / "my-model", task, **changes)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)
    assert '"my-model"' in code
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # noqa: S102 - what people are told to type


def test_a_card_for_every_task() -> None:
    assert set(TASKS) == set(get_args(Manifest.model_fields["task"].annotation))
