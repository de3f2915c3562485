"""A small bundle of two labels, and its classifier, for the tests of prediction here."""

from __future__ import annotations

from pathlib import Path

import pytest

from filbert.infer.predict import Classifier, load
from tests.tiny_bundle import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "sms")


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Classifier:
    return load(bundle, device="cpu", precision="float32")
