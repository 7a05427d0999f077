"""The entry point, as the `tokenrt` script and as `python -m tokenrt`."""

from __future__ import annotations

import gc

COLLECTED = (10_000, 20, 20)
"""Python's 700, 10, 10 read a graph's objects, which live to the end, so often that a reduction took an eighth longer."""


def main() -> None:
    """Run the command line; an interrupt is quiet from the first import on."""
    gc.set_threshold(*COLLECTED)
    try:
        from tokenrt.cli import app

        app(prog_name="tokenrt")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
