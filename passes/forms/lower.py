"""Choose the form the reduction nodes take: standard operators, bare nodes, or what a target wants."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from tokenrt.errors import TokenrtError
from tokenrt.passes.forms.legalize import Accepts, as_plugins, legalize, rows, takes_all
from tokenrt.passes.forms.pairs import Refuses
from tokenrt.passes.graph.functions import Change, inline
from tokenrt.passes.graph.model import ModelLike, check_target, load, save

TOP_K = 3840
"""The largest K of TopK of any TensorRT, which is what loads the plugin library."""


class Wishes(Protocol):
    """The part of a target that lowering reads."""

    @property
    def name(self) -> str: ...

    def accepts(self) -> Accepts: ...


@dataclass(frozen=True)
class Lowering:
    """The pass; one field is set, or `plugin` with `target`."""

    inline: bool = False
    plugin: bool = False
    target: str | None = None

    def spec(self) -> str:
        named = [] if self.target is None else [f"target={self.target}"]
        return f"lower{{{','.join(['inline'] * self.inline + ['plugin'] * self.plugin + named)}}}"


@dataclass(frozen=True)
class Lowered:
    """The lowered model and what was changed in it."""

    model: ir.Model
    changes: tuple[Change, ...]
    form: str = ""
    output: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "form": self.form,
            "output": None if self.output is None else str(self.output),
            "changes": [change.as_dict() for change in self.changes],
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        where = "" if self.output is None else f" -> {self.output}"
        told = Text(f"{self.form}{where}: {len(self.changes)} node{'s' * (len(self.changes) != 1)} changed")
        return Group(told, rows(self.changes)) if self.changes else told


def lower(
    model: ModelLike,
    *,
    inline: bool = False,
    plugin: bool = False,
    target: Wishes | None = None,
    refuses: Refuses = takes_all,
    output: str | os.PathLike[str] | None = None,
) -> Lowered:
    """Lower a copy of `model`, and write it where `output` says.

    inline: only standard operators are left. plugin: the nodes of domain tokenrt lose their bodies, so only
    runtimes with the plugin library take the model; what the library `refuses` becomes standard operators. target: what that
    target does not take is replaced; with `plugin`, the nodes take the form in which the target runs them as plugins.

    Raises: TokenrtError unless one of the three is given, or plugin with target; UnsupportedError naming what cannot be
    lowered.
    """
    if (inline, plugin, target is not None).count(True) != 1 and (inline or target is None):
        raise TokenrtError("lower takes exactly one of inline, plugin and target, or plugin with target")
    lowering = Lowering(inline, plugin, None if target is None else target.name)
    if output is not None:
        check_target(output, model)
    copy = load(model)
    if target is not None:
        changes = legalize(copy, target.accepts(), bare=plugin)
    elif inline:
        changes = _inline(copy)
    else:
        accepts = Accepts(plugin_wins=False, plugin_refuses=refuses, top_k=TOP_K)
        changes = tuple(as_plugins(copy, accepts, "only runtimes with the tokenrt plugin library take it"))
    made_by = copy.metadata_props.get("tokenrt.passes")
    copy.metadata_props["tokenrt.passes"] = "; ".join(filter(None, (made_by, lowering.spec())))
    return Lowered(copy, changes, lowering.spec(), None if output is None else save(copy, output))


def _inline(model: ir.Model) -> tuple[Change, ...]:
    return tuple(inline(model, reason="only standard operators were asked for"))
