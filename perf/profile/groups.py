"""Which part of a model a node belongs to: a transformer block, the reduction in it, or what is around the blocks.

Profiles of every runtime are added up by these groups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir

from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.forms.precision import INSERTED
from tokenrt.passes.graph.ancestry import between
from tokenrt.passes.graph.functions import inline

BEFORE, AFTER, REST = "before the blocks", "after the blocks", "masks, sizes and positions"
REDUCTION = ", reduction"
SITE = re.compile(rf"{INSERTED}(?:transformer(\d+)_)?block(\d+)_")


def groups_of(prepared: Prepared) -> dict[str, str]:
    """The group of every named node of an unreduced model: its block, or what is before or after them.

    Blocks of a second and later transformer are told apart by its number.
    """
    found: dict[str, str] = {}
    blocks = [(number, block) for number, each in enumerate(prepared.transformers) for block in each.blocks]
    for number, block in blocks:
        for node in between(block.entry, block.output):
            found.setdefault(str(node.name), _block(number, block.index))
    seen = False
    for node in prepared.model.graph:
        seen = seen or str(node.name) in found
        found.setdefault(str(node.name), AFTER if seen and blocks else BEFORE)
    found.pop("", None)
    found.pop("None", None)
    return found


def inlined(model: ir.Model, known: Mapping[str, str]) -> dict[ir.Node, str]:
    """Inline the functions of `model`, in place, and say the group of every node then.

    known: groups of the nodes of the unreduced model. A node that is not in it and was not put in by a reduction
    belongs where its result is used first.
    """
    inline(model, reason="what runs it forgets where inlined nodes come from")
    return grouped(model, known)


def grouped(model: ir.Model, known: Mapping[str, str]) -> dict[ir.Node, str]:
    """The group of every node of the graph, as `inlined` says."""
    own: dict[ir.Node, str] = {}
    for node in reversed([*model.graph]):
        names = [str(node.name or ""), *(str(value.name) for value in node.outputs)]
        own[node] = named(names, known) or _of_users(node, own) or AFTER
    return own


def named(names: list[str], known: Mapping[str, str]) -> str:
    """The group that the name of a node tells, followed by those of its outputs; empty where none does."""
    if names[0] in known:
        return known[names[0]]
    for name in names:
        if site := SITE.match(name):
            return reduction_of(int(site[1] or 0), int(site[2]))
    return REST if any(name.startswith(INSERTED) for name in names) else ""


def _block(transformer: int, block: int) -> str:
    return f"transformer {transformer} block {block}" if transformer else f"block {block}"


def reduction_of(transformer: int, block: int) -> str:
    """The group of what a reduction at a block put in."""
    return f"{_block(transformer, block)}{REDUCTION}"


def of_the_reduction(group: str) -> bool:
    """Whether a group is what a reduction put into the model."""
    return group.endswith(REDUCTION) or group == REST


def _of_users(node: ir.Node, own: Mapping[ir.Node, str]) -> str:
    users = [user for value in node.outputs for user in value.consumers()]
    return next((own[user] for user in users if user in own), "")
