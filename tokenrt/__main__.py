"""The entry point, as the `tokenrt` script and as `python -m tokenrt`."""

from __future__ import annotations


def main() -> None:
    """Run the command line; an interrupt is quiet from the first import on."""
    try:
        from tokenrt.cli import app

        app(prog_name="tokenrt")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
