"""``python -m lightning_robust`` is the ``lightning-robust`` command."""

from lightning_robust.cli import main

if __name__ == "__main__":
    main()
