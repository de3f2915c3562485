"""`python -m filbert ...` is `filbert ...`, also for launchers that start modules (torchrun)."""

from filbert.cli import main

if __name__ == "__main__":
    main()
