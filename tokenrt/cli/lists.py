"""Verbs that only tell: methods and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tokenrt
from tokenrt.cli.boundary import Result, verb

if TYPE_CHECKING:
    from tokenrt.targets import Target

Name = Annotated[str | None, typer.Argument(help="Describe this one alone.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for function in (methods, targets):
        verb(app)(function)


def methods(name: Name = None) -> Result:
    """List the reduction methods, or describe one with its options.

    Example: tokenrt methods tome
    """
    if name is None:
        return tokenrt.methods()
    from tokenrt.passes.catalog import info

    return info(name)


def targets(name: Name = None) -> Result:
    """List the devices engines can be built for, or the facts known of one.

    Example: tokenrt targets rtx-sm89
    """
    if name is None:
        return TargetList(tuple(tokenrt.targets()))
    from tokenrt.targets import load

    return load(name)


@dataclass(frozen=True)
class TargetList:
    """Every target, without its facts when drawn."""

    targets: tuple[Target, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"targets": [target.as_dict() for target in self.targets]}

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table("name", "builder", "summary", title="Targets")
        for target in self.targets:
            table.add_row(target.name, target.builder, target.summary)
        return table
