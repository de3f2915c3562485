"""Trains again and again, killed with SIGKILL at random moments, until a run comes to its end.

    python resume_child.py OPTIONS_JSON KILLS SEED classify|pretrain

Each attempt is a forked child that resumes from the newest checkpoint. Half of the kills wait until
a checkpoint is being written. Prints as JSON how many were killed and in the middle of what.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from filbert.train.classify import train_classify
from filbert.train.options import ClassifyOptions
from filbert.train.pretrain import pretrain
from filbert.train.pretrain_options import PretrainOptions

LONGEST = 120.0


def main() -> None:
    values, kills, seed = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    draw = random.Random(seed)
    checkpoints = Path(values["out"]) / "checkpoints"
    told = {"killed": 0, "while_writing": 0, "finished": False}
    for attempt in range(kills * 4):
        child = os.fork()
        if child == 0:
            given = {**values, "resume": attempt > 0}
            if sys.argv[4] == "pretrain":
                pretrain(PretrainOptions(**given), quiet=True)
            else:
                train_classify(ClassifyOptions(**given), quiet=True)
            os._exit(0)
        started = time.monotonic()
        writing = draw.random() < 0.5
        delay = draw.uniform(0.05, 0.8)
        while time.monotonic() - started < LONGEST:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, f"attempt {attempt} failed by itself: {status}"
                told["finished"] = True
                print(json.dumps(told))
                return
            if told["killed"] < kills and time.monotonic() - started > delay:
                half = next(checkpoints.glob(".*.writing"), None) if checkpoints.is_dir() else None
                if half is not None or not writing:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    told["killed"] += 1
                    # still there after the kill: the writing was cut short
                    told["while_writing"] += int(half is not None and half.exists())
                    break
            time.sleep(0.0005)
        else:
            os.kill(child, signal.SIGKILL)
            raise SystemExit(f"attempt {attempt} hung")
    raise SystemExit("no attempt came to its end")


if __name__ == "__main__":
    main()
