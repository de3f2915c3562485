"""What is compiled for processors without AMX, held to the same twins by the same tests.

On a machine with AMX they run once more, in a process that leaves the tiles out. On one without
it, test_native.py and its neighbours run on vectors anyway, and here once more on tiles whose
instructions are plain code (tests/native/amx.hpp).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from filbert.model import native
from filbert.model.native import NativeEncoder
from filbert.model.native_library import TILES_SWITCH, VECTORS, library, opened, units
from tests.numerics.emulated_tiles import LIBRARY_OF_TESTS
from tests.numerics.test_native import PLAIN, batch, encoder

ROOT = Path(__file__).resolve().parents[2]
vectors = opened(VECTORS)
needs_both = pytest.mark.skipif(
    isinstance(vectors, str) or not vectors.filbert_native_level() & 1 or library() is not opened(),
    reason="this processor has not both AMX and AVX-512-BF16, or no library was compiled",
)
CHOSEN = "slow_twin or far_from_zero or of_the_twin or same_masks or alone or extreme or same_bits"
COMPILER = next((name for name in ("c++", "g++") if shutil.which(name)), None)
needs_vectors_alone = pytest.mark.skipif(
    isinstance(library(), str) or library() is opened() or COMPILER is None,
    reason="this processor has AMX or no AVX-512-BF16, or there is no g++",
)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library for AMX with its instructions in plain code."""
    into = tmp_path_factory.mktemp("emulated") / "libemulated.so"
    command = [str(COMPILER), "-O2", "-std=c++17", "-fPIC", "-shared", "-pthread"]
    native_folder = ROOT / "filbert" / "native"
    command += ["-fvisibility=hidden", "-include", str(ROOT / "tests" / "native" / "amx.hpp")]
    done = subprocess.run(
        [*command, str(native_folder / "encoder.cpp"), "-o", str(into)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return into


@needs_vectors_alone
@pytest.mark.parametrize("name", ["native", "native_train", "native_words", "native_write"])
def test_the_same_tests_on_emulated_tiles(name: str, emulated: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", f"tests/numerics/test_{name}.py", "-k", CHOSEN]
    command += ["-p", "no:cacheprovider", "-p", "tests.numerics.emulated_tiles"]
    environment = {**os.environ, LIBRARY_OF_TESTS: str(emulated)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout and " passed" in done.stdout


@needs_both
@pytest.mark.parametrize("name", ["native", "native_train", "native_words", "native_write"])
def test_the_same_tests_without_tiles(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", f"tests/numerics/test_{name}.py", "-k", CHOSEN]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=ROOT, env={**os.environ, TILES_SWITCH: "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout and " passed" in done.stdout


@needs_both
def test_it_is_said_what_multiplies() -> None:
    assert units() == "AMX"
    code = "from filbert.model.native_library import units; print(units())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, TILES_SWITCH: "0"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "AVX-512-BF16 and VNNI"


@needs_both
@pytest.mark.parametrize("hidden", [64, 160])  # 160: products of an odd number of int8 steps
def test_whole_numbers_add_up_to_the_same(hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # int8 sums are exact, so one layer whose attention sees a single token has the same bits
    model = encoder(**{**PLAIN, "hidden_size": hidden, "num_hidden_layers": 1})
    given = batch([1] * 40, 99)
    tiles = NativeEncoder(model, 15)(**given, threads=1)
    monkeypatch.setattr(native, "library", lambda: vectors)
    assert torch.equal(NativeEncoder(model, 15)(**given, threads=1), tiles)
