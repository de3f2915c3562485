"""How the native library is compiled, and what is said where it is not, or is an old one."""

from __future__ import annotations

import importlib.util
import platform
import re
import stat
import sys
from pathlib import Path
from types import ModuleType

import pytest

from filbert import doctor
from filbert.model import native_library
from filbert.model.native_library import ABI, LIBRARY, NO_UNITS, VECTORS, opened

ROOT = Path(__file__).resolve().parents[2]
on_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="it is compiled elsewhere"
)


@pytest.fixture
def build() -> ModuleType:
    pytest.importorskip("hatchling", reason="the package 'hatchling' is not installed (extra dev)")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a library of before, and a search path without compilers."""
    (tmp_path / "filbert/native").mkdir(parents=True)
    for library in (LIBRARY, VECTORS):
        (tmp_path / "filbert/native" / library.name).write_text("old")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def compiler(tree: Path, name: str, text: str) -> None:
    place = tree / "bin" / name
    place.write_text(f"#!/bin/sh\n{text}\n")
    place.chmod(place.stat().st_mode | stat.S_IXUSR)


GOOD = 'while [ "$1" != -o ]; do shift; done; echo new > "$2"'
BAD = "echo error: no AMX in this one >&2; exit 1"


@on_linux
def test_the_first_compiler_that_can_do_it(build: ModuleType, tree: Path) -> None:
    compiler(tree, "c++", BAD)
    compiler(tree, "g++", GOOD)
    compiler(tree, "clang++", BAD)
    assert build.compile_libraries(tree) is None
    assert all((tree / library).read_text() == "new\n" for library in build.LIBRARIES)
    left = sorted(path.name for path in (tree / "filbert/native").iterdir())
    assert left == ["libencoder.so", "libvectors.so"]


@on_linux
def test_a_compiler_that_can_do_one_of_two_is_none(build: ModuleType, tree: Path) -> None:
    half = f'case "$*" in *FILBERT_VECTORS*) {BAD};; esac; {GOOD}'
    compiler(tree, "c++", half)
    assert build.compile_libraries(tree) == "c++ failed: error: no AMX in this one"
    left = [path.name for path in (tree / "filbert/native").iterdir()]
    assert left == ["not_compiled.txt"]


@on_linux
def test_where_none_can_the_reasons_stay_and_no_old_library(
    build: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tree, "c++", BAD)
    compiler(tree, "clang++", "exit 1")
    reason = "c++ failed: error: no AMX in this one; clang++ failed: no message"
    assert build.compile_libraries(tree) == reason
    assert not any((tree / library).exists() for library in build.LIBRARIES)
    kept = tree / build.NOT_COMPILED
    assert kept.read_text("utf-8") == f"{reason}\n"
    monkeypatch.setattr(native_library, "LIBRARY", tree / "filbert/native" / LIBRARY.name)
    monkeypatch.setattr(native_library, "NOT_COMPILED", kept)
    assert f"without its native encoder ({reason})" in str(opened.__wrapped__())
    compiler(tree, "mine", GOOD)
    monkeypatch.setenv("CXX", str(tree / "bin/mine"))
    assert build.compile_libraries(tree) is None and not kept.exists()
    monkeypatch.setenv("CXX", "absent-compiler")
    assert "absent-compiler could not be run" in build.compile_libraries(tree)


@on_linux
def test_where_there_is_no_compiler(build: ModuleType, tree: Path) -> None:
    assert "no C++ compiler found" in build.compile_libraries(tree)
    assert "no C++ compiler found" in (tree / build.NOT_COMPILED).read_text("utf-8")


def test_the_names_are_those_of_the_package(build: ModuleType) -> None:
    assert {ROOT / library for library in build.LIBRARIES} == {LIBRARY, VECTORS}
    assert ROOT / build.NOT_COMPILED == native_library.NOT_COMPILED


def test_both_sides_have_one_version() -> None:
    source = (ROOT / "filbert/native/encoder.cpp").read_text("utf-8")
    assert re.findall(r"constexpr int ABI = (\d+);", source) == [str(ABI)]


@pytest.mark.skipif(not LIBRARY.is_file(), reason="no compiled library here")
def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(opened.__wrapped__(), str)
    monkeypatch.setattr(native_library, "ABI", ABI + 1)
    told = str(opened.__wrapped__())
    assert f"libencoder.so, is version {ABI} where this filbert needs version {ABI + 1}" in told
    assert "install filbert again" in told


@pytest.mark.skipif(not LIBRARY.is_file(), reason="no compiled library here")
@pytest.mark.parametrize("bytes_kept", [0, 63, 100, 100_000])
def test_a_library_that_was_cut_off_is_told(tmp_path: Path, bytes_kept: int) -> None:
    cut = tmp_path / "libvectors.so"
    cut.write_bytes(LIBRARY.read_bytes()[:bytes_kept])
    told = str(opened.__wrapped__(cut))
    assert "does not load: libvectors.so" in told and told.endswith("install filbert again")


def test_a_missing_second_library_is_named(tmp_path: Path) -> None:
    if LIBRARY.is_file():
        assert "(libvectors.so is missing)" in str(opened.__wrapped__(tmp_path / "libvectors.so"))


def test_the_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = ["amx_bf16"]
    monkeypatch.setattr(doctor, "processor", lambda: ("one", flags))
    monkeypatch.setattr(native_library, "library", lambda: "it is older")
    monkeypatch.setattr(native_library, "library_float32", lambda: "it is older")
    monkeypatch.setattr(native_library, "LIBRARY", tmp_path)
    found = doctor.native_finding()
    assert (found.state, found.value) == ("warn", "it is older")
    assert "C++ compiler" in found.advice
    monkeypatch.setattr(native_library, "LIBRARY", Path(__file__))
    assert doctor.native_finding().advice == "Install filbert again: that compiles it."
    monkeypatch.setattr(native_library, "library", lambda: NO_UNITS)
    assert doctor.native_finding().state == "ok"
    monkeypatch.setattr(native_library, "library_float32", lambda: object())
    told = f"ready for float32 (AVX-512); bf16 and int8: {NO_UNITS}"
    assert doctor.native_finding().value == told
    monkeypatch.setattr(native_library, "library", lambda: "libvectors.so is older")
    assert doctor.native_finding().state == "warn"
    monkeypatch.setattr(native_library, "library_float32", lambda: "it is older")
    monkeypatch.setattr(native_library, "library", lambda: "it is older")
    flags.clear()
    assert doctor.native_finding().state == "ok"
