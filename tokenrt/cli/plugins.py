"""Verbs of the TensorRT plugin library: plugins build and plugins info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenrt.cli.boundary import Result, tell, verb


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line, as a group."""
    group = typer.Typer(no_args_is_help=True, help="Build the TensorRT plugin library, or describe it.")
    for function in (build, info):
        verb(group)(function)
    app.add_typer(group, name="plugins")


def build(
    *,
    arch: Annotated[
        str | None,
        typer.Option(
            help="Compute capabilities without the dot; all that nvcc knows by default.", metavar="89,90"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="libtokenrt_plugins.so by default.", metavar="FILE"),
    ] = None,
) -> Result:
    """Compile the plugins into one library for trtexec, TensorRT's Python API, Polygraphy and ONNX Runtime.

    Needs nvcc and TensorRT's headers, no GPU. Example: tokenrt plugins build --arch 87 -o plugins.so
    """
    from tokenrt.plugins.library import build as build_library

    return build_library(arch=arch, output=output, tell=tell)


def info(
    library: Annotated[
        Path | None,
        typer.Argument(help="A library that was built; without one, what can be built here.", metavar="FILE"),
    ] = None,
) -> Result:
    """List the operators that have plugins, the architectures, the releases, and how far each was verified.

    Example: tokenrt plugins info plugins.so
    """
    from tokenrt.plugins.library import info as describe

    return describe(library)
