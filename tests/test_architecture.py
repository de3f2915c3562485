"""The rules of the house, read from the imports and calls of every file in filbert/.

Run alone: pytest tests/test_architecture.py

Each rule is a function from `House` (module name -> source) to a list of complaints, so that the
tests at the end can show, on a house built to be wrong, that every rule does complain.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The order in which data flows: a module imports its own layer and the layers above it.
# A new module directly under filbert/ gets its place here, with the reason in docs/decisions.md.
LAYERS: list[set[str]] = [
    {"errors", "stopping"},
    {"recipes"},  # options read and checked
    {"atomic", "layout", "hub", "sources"},  # files, and where a model's name leads
    {"text"},
    {"data"},
    {"model"},
    {"tasks"},
    {"bundle"},
    {"train"},
    {"infer"},
    {"serve"},
    {"demo", "doctor"},
    {"cli_options"},
    {"cli_predict"},
    {"cli_verbs"},
    {"cli"},
    {"__main__"},
]
# They meet in the bundle.
STRANGERS = [{"train", "infer"}]

# Imports for type hints alone that go against the order, each with its reason.
ALLOWED_FOR_TYPES = {
    # a task's decode() reads labels, thresholds and temperature off the manifest it is handed
    *(
        (f"filbert.tasks.{task}", "filbert.bundle")
        for task in ("answer", "classify", "distil", "embed", "rank", "tag")
    ),
}

# Modules that load fast: what they import at module level, directly or not, holds none of HEAVY.
LIGHT = (
    *("filbert", "filbert.cli", "filbert.__main__", "filbert.errors", "filbert.train.options"),
    *("filbert.train.pretrain_options", "filbert.data.prepare_options"),
    "filbert.data.vocab_options",
)
HEAVY = {
    *("torch", "numpy", "scipy", "sklearn", "pyarrow", "pandas", "tokenizers", "safetensors"),
    *("huggingface_hub", "tensorboard"),
}
# Folders and files that work without torch being loaded.
WITHOUT_TORCH = ("filbert.text", "filbert.data", "filbert.tasks.metrics", "filbert.tasks.calibrate")

# References for tests and benchmark peers, and everything that turns bytes into running code.
FORBIDDEN_IMPORTS = {
    *("transformers", "sentence_transformers", "tensorflow", "keras", "datasets", "accelerate"),
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"),
}
# Imports of those, each with its reason.
ALLOWED_FOREIGN = {
    ("filbert.infer.export_tensorflow", "tensorflow"),  # writes what TensorFlow alone can write
    # the peers that `filbert benchmark` measures beside filbert
    ("filbert.infer.benchmark_subject", "transformers"),
    ("filbert.infer.benchmark_peers", "sentence_transformers"),
}
FORBIDDEN_NAMES = {"eval", "exec", "__import__"}
FORBIDDEN_CALLS = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load"),
    *("os.system", "os.popen", "runpy.run_path", "runpy.run_module", "numpy.lib.npyio.NpzFile"),
}

MAX_LINES = 500
VAGUE_FILES = {"utils", "util", "helpers", "common", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported module, as filbert's own or a foreign top-level name."""

    target: str
    line: int
    at_module_level: bool
    for_types_only: bool


@dataclass
class House:
    """All modules of the package by name, with their sources."""

    sources: dict[str, str]
    packages: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, root: Path) -> House:
        sources, packages = {}, set()
        for path in sorted((root / "filbert").rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if parts[-1] == "__init__":
                packages.add(name)
            sources[name] = path.read_text(encoding="utf-8")
        return cls(sources, packages)

    def tree(self, module: str) -> ast.Module:
        return ast.parse(self.sources[module], filename=module)

    def imports(self, module: str) -> list[Import]:
        """Every import statement of `module`, those inside functions too."""
        return list(self._imports(module, self.tree(module), top=True, types=False))

    def _imports(self, module: str, node: ast.AST, *, top: bool, types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(self.nearest(alias.name), child.lineno, top, types)
            elif isinstance(child, ast.ImportFrom):
                base = self._absolute(module, child)
                for alias in child.names:
                    target = self.nearest(f"{base}.{alias.name}")
                    yield Import(target, child.lineno, top, types)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for part in child.body:
                    inner = ast.Module(body=[part], type_ignores=[])
                    yield from self._imports(module, inner, top=top, types=True)
                for part in child.orelse:
                    inner = ast.Module(body=[part], type_ignores=[])
                    yield from self._imports(module, inner, top=top, types=types)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from self._imports(module, child, top=top and not inside, types=types)

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        parts = module.split(".") if module in self.packages else module.split(".")[:-1]
        parts = parts[: len(parts) - (node.level - 1)]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def nearest(self, dotted: str) -> str:
        """The module that `dotted` names or lies in; of a foreign one only the top name."""
        if dotted.split(".")[0] != "filbert":
            return dotted.split(".")[0]
        while dotted not in self.sources and "." in dotted:
            dotted = dotted.rpartition(".")[0]
        return dotted

    def loaded_with(self, module: str) -> dict[str, str]:
        """Everything that importing `module` loads: name -> the module that asks for it."""
        reached: dict[str, str] = {module: module}
        queue = [module]
        while queue:
            name = queue.pop()
            if name not in self.sources:
                continue
            wanted = [
                i.target for i in self.imports(name) if i.at_module_level and not i.for_types_only
            ]
            parents = [name.rpartition(".")[0]] if "." in name else []
            for target in [*wanted, *parents]:
                if target not in reached:
                    reached[target] = name
                    queue.append(target)
        return reached


def layer(module: str) -> int | None:
    """The place of a module in LAYERS; None for the package itself, -1 for an unknown one."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    return next((i for i, names in enumerate(LAYERS) if parts[1] in names), -1)


def complain_order(house: House) -> list[str]:
    """A module imports its own layer and earlier ones, and strangers never meet."""
    complaints = []
    for module in house.sources:
        own = layer(module)
        if own == -1:
            complaints.append(f"{module} has no place in LAYERS")
        if own is None:
            continue  # the package's own table of lazy names reaches everything by design
        for found in house.imports(module):
            place = layer(found.target) if found.target.startswith("filbert.") else None
            allowed = found.for_types_only and (module, found.target) in ALLOWED_FOR_TYPES
            if place is not None and place > own and not allowed:
                complaints.append(f"{module}:{found.line} imports {found.target}, a later layer")
            for strangers in STRANGERS:
                folders = {name.split(".")[1] for name in (module, found.target) if "." in name}
                if folders == strangers:
                    complaints.append(f"{module}:{found.line} imports {found.target}, a stranger")
    return complaints


def complain_cycles(house: House) -> list[str]:
    """No module imports itself by way of others, not even inside functions."""
    graph = {
        module: {i.target for i in house.imports(module) if i.target.startswith("filbert.")}
        - {module}
        for module in house.sources
        if module != "filbert"
    }
    done: set[str] = set()
    complaints: list[str] = []

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            complaints.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                walk(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return complaints


def complain_cli(house: House) -> list[str]:
    """Nobody imports the command line but the file that starts it."""
    return [
        f"{module}:{found.line} imports the command line"
        for module in house.sources
        for found in house.imports(module)
        if found.target == "filbert.cli" and module != "filbert.__main__"
    ]


def complain_package_root(house: House) -> list[str]:
    """From the package itself only `__version__` is taken: its other names are for users."""
    complaints = []
    for module in house.sources:
        for node in ast.walk(house.tree(module)):
            taken: set[str] = set()
            if isinstance(node, ast.ImportFrom) and node.module == "filbert" and node.level == 0:
                taken = {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "filbert":
                taken = {node.attr}
            for name in sorted(taken - {"__version__"}):
                if f"filbert.{name}" not in house.sources:
                    complaints.append(
                        f"{module}:{getattr(node, 'lineno', 0)} takes {name} from filbert"
                    )
    return complaints


def complain_weight(house: House) -> list[str]:
    """Light modules load nothing heavy, and text and data no torch, by any chain of imports."""
    complaints = []
    for module in house.sources:
        heavy: set[str] = set()
        if module in LIGHT:
            heavy = HEAVY
        elif module.startswith(WITHOUT_TORCH):
            heavy = {"torch"}
        reached = house.loaded_with(module) if heavy else {}
        complaints += [
            f"importing {module} loads {name}, asked for by {reached[name]}"
            for name in sorted(heavy & set(reached))
        ]
    return complaints


def complain_foreign(house: House) -> list[str]:
    """Nothing that is a reference for tests, and nothing that unpickles, is imported."""
    return [
        f"{module}:{found.line} imports {found.target}"
        for module in house.sources
        for found in house.imports(module)
        if found.target in FORBIDDEN_IMPORTS and (module, found.target) not in ALLOWED_FOREIGN
    ]


def complain_code(house: House) -> list[str]:
    """Nothing that came from outside can run: no eval, no unpickling, no shell."""
    complaints = []
    for module in house.sources:
        tree = house.tree(module)
        names = aliases(tree)
        for node in ast.walk(tree):
            what = ""
            if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
                what = node.id
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
                head, _, rest = ast.unparse(node).partition(".")
                full = ".".join(filter(None, (names.get(head, head), rest)))
                what = full if full in FORBIDDEN_CALLS else ""
            elif isinstance(node, ast.keyword) and node.arg in {"shell", "allow_pickle"}:
                safe = isinstance(node.value, ast.Constant) and node.value.value is False
                what = "" if safe else f"{node.arg}={ast.unparse(node.value)}"
            if what:
                complaints.append(f"{module}:{getattr(node, 'lineno', 0)} uses {what}")
    return complaints


def aliases(tree: ast.Module) -> dict[str, str]:
    """Local name -> full name, for everything that the file imports."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def complain_shape(house: House) -> list[str]:
    """One idea a file, at most 500 lines of it, and a first sentence that says which."""
    complaints = []
    for module, source in house.sources.items():
        lines = source.count("\n")
        if lines > MAX_LINES:
            complaints.append(f"{module} has {lines} lines, more than {MAX_LINES}")
        if module.rpartition(".")[2] in VAGUE_FILES:
            complaints.append(f"{module}: a file is named after its idea")
        if not ast.get_docstring(house.tree(module)):
            complaints.append(f"{module} does not say what it is")
    return complaints


RULES: list[Callable[[House], list[str]]] = [
    complain_order,
    complain_cycles,
    complain_cli,
    complain_package_root,
    complain_weight,
    complain_foreign,
    complain_code,
    complain_shape,
]


@pytest.fixture(scope="module")
def house() -> House:
    return House.of(ROOT)


def test_the_house_was_found(house: House) -> None:
    assert {"filbert", "filbert.errors", "filbert.model", "filbert.doctor"} <= set(house.sources)
    assert {"filbert", "filbert.model", "filbert.text"} <= house.packages


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removeprefix("complain_"))
def test_rule(rule: Callable[[House], list[str]], house: House) -> None:
    assert rule(house) == []


# Every rule complains about a house that breaks it.

SOUND = {
    "filbert": '"""P."""\n',
    "filbert.cli": '"""C."""\ndef main():\n    import torch\n',
    "filbert.text": '"""T."""\n',
    "filbert.text.tokenizer": '"""T."""\nfrom filbert.errors import FilbertError\n',
    "filbert.errors": '"""E."""\n',
    "filbert.sources": '"""S."""\n',
    "filbert.model": '"""M."""\n',
    "filbert.model.bert": '"""B."""\n',
    "filbert.train": '"""R."""\n',
    "filbert.infer": '"""I."""\n',
}
WRONG = [
    (complain_order, "filbert.text.a", "from filbert.model import bert", "later layer"),
    (complain_order, "filbert.errors", "def f():\n    import filbert.sources", "later layer"),
    (complain_order, "filbert.text.a", "from ..train import loop", "later layer"),
    (complain_order, "filbert.infer.a", "from filbert.train import loop", "stranger"),
    (complain_order, "filbert.train.a", "from filbert import infer", "later layer"),
    (complain_order, "filbert.gadgets", "", "no place"),
    (complain_cycles, "filbert.errors", "from filbert.text import tokenizer", "->"),
    (complain_cycles, "filbert.text", "def f():\n    from . import tokenizer as t\n", ""),
    (complain_cli, "filbert.text.a", "from filbert.cli import main", "command line"),
    (complain_cli, "filbert.text.a", "from filbert import cli", "command line"),
    (complain_package_root, "filbert.text.a", "from filbert import load", "load"),
    (complain_package_root, "filbert.text.a", "import filbert\nfilbert.load(1)", "load"),
    (complain_package_root, "filbert.text.a", "import filbert\nfilbert.__version__", ""),
    (complain_weight, "filbert.text.a", "import torch.nn as nn", "loads torch"),
    (
        complain_weight,
        "filbert.text",
        "try:\n    import torch\nexcept ImportError:\n    pass",
        "torch",
    ),
    (complain_weight, "filbert.cli", "from filbert.errors import x", ""),
    (complain_weight, "filbert.errors", "from numpy import array", "asked for by filbert.errors"),
    (
        complain_foreign,
        "filbert.text.a",
        "def f():\n    import transformers.models",
        "transformers",
    ),
    (complain_foreign, "filbert.text.a", "from pickle import loads", "pickle"),
    (complain_code, "filbert.text.a", "import torch as t\nt.load('x')", "torch.load"),
    (complain_code, "filbert.text.a", "from torch import load as get\nget('x')", "torch.load"),
    (complain_code, "filbert.text.a", "eval('1')", "eval"),
    (complain_code, "filbert.text.a", "run = exec", "exec"),
    (complain_code, "filbert.text.a", "import os\nos.system('ls')", "os.system"),
    (complain_code, "filbert.text.a", "import subprocess as s\ns.run('ls', shell=True)", "shell"),
    (complain_code, "filbert.text.a", "import numpy as np\nnp.load(f, allow_pickle=x)", "pickle"),
    (complain_shape, "filbert.text.a", "x = 1\n" * 500, "501 lines"),
    (complain_shape, "filbert.text.utils", "", "named after its idea"),
]


def built(module: str, code: str) -> House:
    """The sound house with one module more, or one module's code replaced."""
    return House({**SOUND, module: f'"""D."""\n{code}'}, {"filbert", "filbert.text"})


@pytest.mark.parametrize(("rule", "module", "code", "complaint"), WRONG)
def test_rule_complains(
    rule: Callable[[House], list[str]], module: str, code: str, complaint: str
) -> None:
    complaints = rule(built(module, code))
    if complaint:
        assert complaints, "the rule let it pass"
        assert complaint in complaints[0]
    else:
        assert complaints == []


def test_sound_house_passes() -> None:
    house = House(dict(SOUND), {"filbert", "filbert.text"})
    assert [complaint for rule in RULES for complaint in rule(house)] == []


def test_every_exception_is_still_needed(house: House) -> None:
    found = {(m, i.target) for m in house.sources for i in house.imports(m) if i.for_types_only}
    assert found >= ALLOWED_FOR_TYPES
    assert {(m, i.target) for m in house.sources for i in house.imports(m)} >= ALLOWED_FOREIGN


def test_a_cycle_is_told_whole() -> None:
    house = built("filbert.text", "from filbert.text.tokenizer import x")
    house.sources["filbert.text.tokenizer"] += "from . import y\n"
    assert complain_cycles(house) == [
        "filbert.text -> filbert.text.tokenizer -> filbert.text",
    ]


def test_types_only_imports_keep_the_order_but_weigh_nothing() -> None:
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
    assert complain_weight(built("filbert.text.a", code)) == []
    code += "    from filbert.model import bert\n"
    assert len(complain_order(built("filbert.text.a", code))) == 1


def test_a_missing_docstring_is_told() -> None:
    assert complain_shape(House({"filbert.text.a": "x = 1\n"})) == [
        "filbert.text.a does not say what it is"
    ]
