"""Which block of the model an engine's layer computes, and whether attention is still one layer.

An engine built with details names the ONNX nodes of every layer. A layer made of nodes of several groups counts with the
one most of them are of; one that names none, as a change of layout, counts with the layer before it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from tokenrt.passes.forms.precision import INSERTED
from tokenrt.perf.profile import groups
from tokenrt.targets.trtexec.files import Layer, LayerTime

SEVERAL = "several blocks at once"
BLOCK = re.compile(r"(?:transformer \d+ )?block \d+")
FUSED = re.compile(r"mha|flash|fused_?attention", re.IGNORECASE)
"""In the names of TensorRT's kernels for a whole attention."""

MADE_ANEW = re.compile(r"_myl\d+_\d+$")
WORD = re.compile(r"[^\s+,(){}\[\]\x1e\x1f]+")


@dataclass(frozen=True)
class Trace:
    """Groups of a model's nodes by name, and the operators of those in blocks."""

    groups: Mapping[str, str]
    operators: Mapping[str, str] = field(default_factory=dict)

    def group(self, node: str) -> str:
        """The group of a node; empty when its name tells nothing."""
        return self.groups.get(node) or groups.named([node], self.groups)


def trace(model: ir.Model, known: Mapping[str, str], *, whole: bool) -> Trace:
    """Name the nodes of `model` so that an engine's layers can be traced to their group; the model is changed.

    known: groups of the unreduced model. whole: functions are inlined, as the parser would do it, so that every call
    has names of its own; otherwise calls stay, for plugins.
    """
    own = groups.inlined(model, known) if whole else groups.grouped(model, known)
    taken = {str(node.name) for node in own if node.name}
    for node, group in own.items():
        if node.name and groups.named([node.name], known) == group:
            continue
        if groups.of_the_reduction(group) or not node.name:
            block = BLOCK.match(group) if groups.of_the_reduction(group) else None
            # As the rewrite names what it puts in: tokenrt_transformer1_block3_.
            start = INSERTED + re.sub(r" (\d+) ?", r"\1_", block[0]) if block else ""
            node.name = _free(f"{start}{node.outputs[0].name or node.op_type}", taken)
    return Trace(
        {str(node.name): group for node, group in own.items()},
        {str(node.name): node.op_type for node in own},
    )


def assign(layers: Sequence[Layer], traced: Trace) -> list[str]:
    """The group of every layer."""
    found: list[str] = []
    for layer in layers:
        votes = Counter(filter(None, map(traced.group, nodes(layer, traced))))
        blocks = {BLOCK.match(group)[0] for group in votes if BLOCK.match(group)}  # type: ignore[index]
        if len(blocks) > 2:
            found.append(SEVERAL)
        elif votes:
            found.append(votes.most_common(1)[0][0])
        else:
            found.append(found[-1] if found else groups.BEFORE)
    return found


def nodes(layer: Layer, traced: Trace) -> tuple[str, ...]:
    """The ONNX nodes of a layer; taken from its name where the engine keeps no details."""
    if layer.nodes:
        return layer.nodes
    words = (MADE_ANEW.sub("", word) for word in WORD.findall(layer.name))
    return tuple(word for word in words if traced.group(word))


def add_up(layers: Sequence[Layer], times: Sequence[LayerTime], traced: Trace) -> dict[str, float]:
    """Milliseconds by group, in the order of the engine. Layers that took no time have no time in the profile."""
    group_of: dict[str, list[str]] = {}
    for layer, group in zip(layers, assign(layers, traced), strict=True):
        group_of.setdefault(layer.name, []).append(group)
    summed: dict[str, float] = {}
    last = groups.BEFORE
    for time in times:
        # One name may stand for several layers: they come in one order in both files.
        queue = group_of.get(time.name, [])
        last = queue.pop(0) if len(queue) > 1 else queue[0] if queue else last
        summed[last] = summed.get(last, 0.0) + time.milliseconds
    return summed


def reformats(layers: Iterable[Layer], times: Iterable[LayerTime]) -> tuple[int, float]:
    """How many layers only change a layout or type, and their milliseconds."""
    names = {layer.name for layer in layers if layer.reformats}
    spent = [time.milliseconds for time in times if time.name in names]
    return len(names), sum(spent)


def fused_attention(layers: Sequence[Layer], traced: Trace) -> dict[str, bool]:
    """Whether the attention of a block is one layer; blocks whose attention no layer names are left out.

    It is where the layer's kernel is one of TensorRT's for attention, or the softmax and both products are in one layer.
    """
    hearts = {"Softmax", "Attention"}
    found: dict[str, bool] = {}
    seen: Counter[str] = Counter()
    for layer in layers:
        held = [(traced.group(node), traced.operators.get(node, "")) for node in nodes(layer, traced)]
        for group in {group for group, operator in held if operator in hearts and BLOCK.fullmatch(group)}:
            operators = Counter(operator for owner, operator in held if owner == group)
            kernel = FUSED.search(layer.name) or FUSED.search(layer.tactic)
            found[group] = found.get(group, False) or bool(kernel) or operators["MatMul"] > 1
            seen[group] += operators["Attention"]
    # One Attention node in one layer is whole, however the kernel is called.
    return {group: one or seen[group] == 1 for group, one in found.items()}


def _free(name: str, taken: set[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_./:-]", "_", name)
    free, number = plain, 0
    while free in taken:
        number += 1
        free = f"{plain}_{number}"
    taken.add(free)
    return free
