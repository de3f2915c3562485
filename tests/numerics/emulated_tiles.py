"""A plugin of pytest: tests then compute with the library that `FILBERT_TEST_LIBRARY` names.

test_native_vectors.py compiles one whose tiles are plain code, and starts pytest with this.
"""

from __future__ import annotations

import os
from pathlib import Path

from filbert.model import native_library

LIBRARY_OF_TESTS = "FILBERT_TEST_LIBRARY"


def pytest_configure() -> None:
    """Before a test file is imported, and with it a library chosen."""
    if given := os.environ.get(LIBRARY_OF_TESTS):
        native_library.LIBRARY = Path(given)
        assert native_library.units() == "AMX"
