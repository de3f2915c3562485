"""The memory that a bundle needs, measured in a process of its own.

`measure` starts `python -m filbert.infer.benchmark_memory`, hands it a bundle and rows as JSON,
and reads how large that process was: in a process that did other things before, nobody can tell
what belongs to whom.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from filbert.errors import FilbertError

STATUS = Path("/proc/self/status")


def measure(bundle: str, rows: list[Any], **machine: Any) -> dict[str, int] | None:
    """Bytes of a process that answers `rows`: `libraries` (after the imports), `loaded` (with the
    model), `peak`. None where the system does not tell (it takes Linux). `machine`: options of
    `filbert.load`. Raises `FilbertError` where the process fails."""
    if not STATUS.is_file():
        return None
    task = json.dumps({"bundle": bundle, "rows": rows, "machine": machine})
    done = subprocess.run(
        [sys.executable, "-m", "filbert.infer.benchmark_memory"],
        input=task, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    if done.returncode:
        raise FilbertError(
            f"memory: the process that measures it ended with {done.returncode}: "
            f"{done.stderr.strip()[-500:]}"
        )
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def resident(field: str) -> int:
    """Bytes of this process in memory: VmRSS (now) or VmHWM (the most)."""
    match = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text("ascii"), re.MULTILINE)
    if match is None:
        raise FilbertError(f"{STATUS} does not tell {field}")
    return 1024 * int(match[1])


def main() -> None:
    """The process: a task as JSON on standard input, its sizes as JSON on standard output."""
    from filbert.infer.predict import load

    task = json.load(sys.stdin)
    found = {"libraries": resident("VmRSS")}
    predictor = load(task["bundle"], **task["machine"])
    found["loaded"] = resident("VmRSS")
    rows = [tuple(row) if predictor.manifest.pair else row for row in task["rows"]]
    predictor.answer_rows(rows)
    found["peak"] = resident("VmHWM")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
