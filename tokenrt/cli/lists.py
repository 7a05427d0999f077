"""Verbs that only tell: methods, targets and doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tokenrt
from tokenrt.cli import options as o
from tokenrt.cli.boundary import Result, verb

if TYPE_CHECKING:
    from tokenrt.targets import Target

Name = Annotated[str | None, typer.Argument(help="Describe this one alone.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for function in (methods, targets, doctor):
        verb(app)(function)


def methods(name: Name = None) -> Result:
    """List the reduction methods, or describe one with its options.

    Example: tokenrt methods tome
    """
    if name is None:
        return tokenrt.methods()
    from tokenrt.passes.methods.catalog import info

    return info(name)


def targets(
    name: Name = None,
    *,
    tensorrt: o.Tensorrt = None,
    folder: o.Folder = None,
) -> Result:
    """List the devices models are lowered and built for, or the facts known of one.

    Example: tokenrt targets rtx-sm89
    """
    from tokenrt.targets import load

    if name is not None:
        return load(name, tensorrt=tensorrt, folder=folder)
    return TargetList(tuple(tokenrt.targets(folder)))


def doctor() -> Result:
    """Say what is installed, what is missing for which verb, and what mends it.

    Example: tokenrt doctor
    """
    return tokenrt.doctor()


@dataclass(frozen=True)
class TargetList:
    """Every target, without its facts when drawn."""

    targets: tuple[Target, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"targets": [target.as_dict() for target in self.targets]}

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table("name", "builder", "compute capability", "summary", title="Targets")
        for target in self.targets:
            capabilities = ", ".join(target.compute_capabilities)
            table.add_row(target.name, target.builder, capabilities, target.summary)
        return table
