"""Verbs that only tell: methods and targets."""

from __future__ import annotations

from collections.abc import Mapping
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
    catalog = tokenrt.methods()
    if name is None:
        return catalog
    from tokenrt.passes.methods import get

    found = get(name).name
    return MethodCard(next(row for row in catalog.as_dict()["methods"] if row["name"] == found))


def targets(name: Name = None) -> Result:
    """List the devices engines can be built for, or the facts known of one.

    Example: tokenrt targets rtx-sm89
    """
    if name is None:
        return TargetList(tuple(tokenrt.targets()))
    from tokenrt.targets import load

    return load(name)


@dataclass(frozen=True)
class MethodCard:
    """One method, a property to a line."""

    properties: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return dict(self.properties)

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False)
        for key, value in self.properties.items():
            table.add_row(key, Text(_text(value)))
        return table


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


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"--set {key}={item}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
