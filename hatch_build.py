"""Compile filbert/native where a C++ compiler is; elsewhere filbert works without it.

hatchling runs this for a wheel and for an editable install. The compiler is the one that `CXX`
names, or the first of the usual ones that can do it; where none can, `not_compiled.txt` says why,
for `filbert doctor`. What is compiled asks the processor at run time whether it serves, so no flag
here depends on the machine that builds.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "filbert/native/encoder.cpp"
LIBRARIES = {  # one source, compiled for AMX and for processors without it
    "filbert/native/libencoder.so": [],
    "filbert/native/libvectors.so": ["-DFILBERT_VECTORS"],
}
NOT_COMPILED = "filbert/native/not_compiled.txt"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]


class NativeEncoder(BuildHookInterface[Any]):
    """Builds the shared libraries and puts them into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, or say on standard error why not."""
        if self.target_name != "wheel":
            return
        reason = compile_libraries(Path(self.root))
        if reason:
            sys.stderr.write(f"filbert: built without its native encoder: {reason}\n")
            build_data["artifacts"].append(NOT_COMPILED)
            return
        build_data["artifacts"] += LIBRARIES
        build_data["pure_python"] = False
        # no Python headers are used: any Python 3, this system alone
        build_data["tag"] = f"py3-none-{_platform_tag()}"


def compile_libraries(root: Path) -> str | None:
    """Compile into place; returns why it could not be, None if all is there. Older libraries go
    in any case: their functions may take other arguments."""
    for library in LIBRARIES:
        (root / library).unlink(missing_ok=True)
    (root / NOT_COMPILED).unlink(missing_ok=True)
    reason = _compile_by_any(root)
    if reason is not None:
        (root / NOT_COMPILED).write_text(f"{reason}\n", encoding="utf-8")
    return reason


def _compile_by_any(root: Path) -> str | None:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"it is for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    named = os.environ.get("CXX")
    compilers = [named] if named else [name for name in COMPILERS if shutil.which(name)]
    if not compilers:
        return "no C++ compiler found (c++, g++ or clang++, or name one in CXX)"
    reasons = []
    for compiler in compilers:
        with ThreadPoolExecutor() as pool:
            jobs = [pool.submit(_compile, root, compiler, name) for name in LIBRARIES]
        failed = [reason for job in jobs if (reason := job.result()) is not None]
        if not failed:
            return None
        for library in LIBRARIES:
            (root / library).unlink(missing_ok=True)
        reasons.append(failed[0])
    return "; ".join(reasons)


def _compile(root: Path, compiler: str, library: str) -> str | None:
    target = root / library
    part = target.with_suffix(f".{os.getpid()}.part")
    command = [
        *(*shlex.split(compiler), *FLAGS, *LIBRARIES[library]),
        *(str(root / SOURCE), "-o", str(part)),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            return f"{compiler} failed: {(done.stderr.strip().splitlines() or ['no message'])[0]}"
        part.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{compiler} could not be run: {error}"
    finally:
        part.unlink(missing_ok=True)
    return None


def _platform_tag() -> str:
    import sysconfig

    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
