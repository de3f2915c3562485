"""The package as a whole: its public names, its weight, and that pyproject.toml tells the truth."""

from __future__ import annotations

import ast
import importlib.metadata
import itertools
import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import filbert

ROOT = Path(__file__).resolve().parents[2]

PUBLIC = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSeq2SeqLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertModel",
    "BertTokenizer",
    "BertTokenizerFast",
    "FilbertError",
    "ModernBertConfig",
    "ModernBertForMaskedLM",
    "ModernBertForSequenceClassification",
    "ModernBertModel",
    "__version__",
    "load",
]
# name to import -> distribution, where the two differ
DISTRIBUTION = {"sklearn": "scikit-learn"}
HEAVY = ["torch", "numpy", "scipy", "sklearn", "pyarrow", "tokenizers", "huggingface_hub"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with this checkout first on its path."""
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]


# Names


def test_public_names_are_these() -> None:
    assert filbert.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(filbert))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_there(name: str) -> None:
    value = getattr(filbert, name)
    assert value is getattr(filbert, name)
    if name not in {"__version__", "load", "BertTokenizerFast"}:
        assert value.__name__ == name


def test_names_for_type_checkers_are_the_same() -> None:
    tree = ast.parse((ROOT / "filbert" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {"__version__"}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            seen |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            seen |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert sorted(seen) == PUBLIC


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'filbert' has no attribute 'BertModle'"):
        filbert.BertModle  # noqa: B018
    assert not hasattr(filbert, "torch")


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", filbert.__version__)
    try:
        installed = importlib.metadata.version("filbert")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("filbert is not installed: it runs from the checkout")
    assert installed == filbert.__version__


# Weight


@pytest.mark.parametrize(
    "code",
    [
        "import filbert",
        "import filbert; dir(filbert); filbert.__version__; filbert.FilbertError",
        "import filbert.cli",
        "from filbert.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["import", "names", "cli", "help"],
)
def test_loads_nothing_heavy(code: str) -> None:
    check = f"{code}\nimport sys\nprint('loaded', sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = run("-c", check)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_import_takes_no_time() -> None:
    code = (
        "import time; start = time.perf_counter(); import filbert\n"
        "print(time.perf_counter() - start)"
    )
    assert min(float(run("-c", code).stdout) for _ in range(5)) < 0.15


def test_help_takes_little_time() -> None:
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("-m", "filbert", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # processor time: other tests run at the same time
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.4


def test_runs_as_a_module() -> None:
    done = run("-m", "filbert", "--help")
    assert done.returncode == 0
    assert "Usage: filbert" in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert run("-m", "filbert", "dokter").returncode == 2


# pyproject.toml and constraints.txt


def foreign_imports() -> dict[str, set[str]]:
    """Top-level names of other packages that filbert imports -> the files that do."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "filbert").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                if name != "filbert":
                    found.setdefault(name, set()).add(path.name)
    return found


def declared(project: dict[str, Any], *extras: str) -> set[str]:
    rows = list(project["dependencies"])
    for extra in extras:
        rows += project["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(row).name) for row in rows}


def test_every_import_is_declared(project: dict[str, Any]) -> None:
    imported = {canonicalize_name(DISTRIBUTION.get(n, n)): f for n, f in foreign_imports().items()}
    extras = ("bench", "demo", "export", "pretrain", "tasks", "tensorboard", "tensorflow")
    undeclared = set(imported) - declared(project, *extras)
    assert {name: imported[name] for name in undeclared} == {}


def test_every_dependency_is_imported(project: dict[str, Any]) -> None:
    imported = {canonicalize_name(DISTRIBUTION.get(name, name)) for name in foreign_imports()}
    assert declared(project) - imported == set()


def test_constraints_lie_in_the_declared_ranges(project: dict[str, Any]) -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert name not in pins
            pins[name] = version
    assert pins["torch"] == "2.13.0"
    for row in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        wanted = Requirement(row)
        if wanted.name != "filbert":
            assert pins[canonicalize_name(wanted.name)] in wanted.specifier, row


def test_extras_name_each_other_rightly(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    for rows in extras.values():
        for row in map(Requirement, rows):
            if row.name == "filbert":
                assert row.extras <= set(extras)


def test_ctrl_c_while_the_verbs_are_read_is_told_without_a_traceback() -> None:
    code = """
import sys, filbert.__main__
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "filbert.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
filbert.__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
