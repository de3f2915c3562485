"""Compile filbert/native where a C++ compiler is; elsewhere filbert works without it.

hatchling runs this for a wheel and for an editable install. A compiler is looked for in `CXX`, then
by its usual names. What is compiled asks the processor at run time whether it serves, so no flag
here depends on the machine that builds.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "filbert/native/encoder.cpp"
LIBRARY = "filbert/native/libencoder.so"
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]


class NativeEncoder(BuildHookInterface[Any]):
    """Builds the shared library and puts it into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, or say on standard error why not."""
        if self.target_name != "wheel":
            return
        reason = compile_library(Path(self.root))
        if reason:
            sys.stderr.write(f"filbert: built without its native encoder: {reason}\n")
            return
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        # no Python headers are used: any Python 3, this system alone
        build_data["tag"] = f"py3-none-{_platform_tag()}"


def compile_library(root: Path) -> str | None:
    """Compile into place; returns why it could not be, None if it is there."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"it is for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    compiler = os.environ.get("CXX") or next(
        (name for name in ("c++", "g++", "clang++") if shutil.which(name)), None
    )
    if compiler is None:
        return "no C++ compiler found (c++, g++ or clang++, or name one in CXX)"
    target = root / LIBRARY
    part = target.with_suffix(f".{os.getpid()}.part")
    command = [*shlex.split(compiler), *FLAGS, str(root / SOURCE), "-o", str(part)]
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
