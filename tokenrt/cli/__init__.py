"""The command line: one thin verb per function of the front door."""

from __future__ import annotations

from typing import Annotated

import typer

import tokenrt
from tokenrt.cli import graph, lists, models, plugins, tuning
from tokenrt.cli.boundary import Verbs

app = typer.Typer(
    name="tokenrt",
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tokenrt {tokenrt.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Token reduction for transformers, as a compiler pass on ONNX graphs.

    Every verb takes --json for one JSON document on standard output. Exit status: 0 success, 1 a check that says no, or a
    fault in tokenrt itself (the message has the line to report), 2 bad input, 3 a wish of tune that cannot be met.
    """


models.register(app)
graph.register(app)
tuning.register(app)
lists.register(app)
plugins.register(app)
