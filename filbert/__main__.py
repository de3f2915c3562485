"""Where the command `filbert` begins; `python -m filbert ...` is the same, for launchers that start
modules (torchrun)."""

import sys


def main() -> None:
    """Run one command. Ctrl-C while Python still reads the verbs (half a second) is told as it is
    later on."""
    try:
        from filbert.cli import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
