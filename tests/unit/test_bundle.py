"""A bundle is written and opened so that its parts fit each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from filbert.bundle import Manifest, open_bundle, save_bundle
from filbert.errors import FilbertError
from filbert.model.bert import BertForMaskedLM
from filbert.text import BertTokenizer
from tests.tiny_bundle import VOCABULARY, tiny_config


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
