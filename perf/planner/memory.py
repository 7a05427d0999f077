"""Peak memory of activations: what is alive at once when nodes run in order and a tensor is freed behind its last reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.perf.planner.opened import VIEWS, Opened

IN_PLACE = frozenset(
    {
        "Celu", "Clip", "Elu", "HardSigmoid", "LeakyRelu", "LogSoftmax", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus",
        "Softsign", "Tanh", "ThresholdedRelu", "Trilu",
    }
)  # fmt: skip
"""Operators that write over their input where nothing reads it behind them: those for which the arena of ONNX Runtime 1.31 hands
out nothing on a CPU, one by one. Add, Mul and Erf are none of them."""

ACTIVATIONS = {"Erf": ("Div", ("Add", "Mul", "Mul")), "Sigmoid": ("Mul", ("Mul",))}
"""Activations of several nodes that ONNX Runtime makes one kernel of: what stands in front of this operator, and behind it. It
knows them where their input is multiplied first: x (1 + erf) 0.5, and not x (0.5 (1 + erf)), as torch's later exporter has it."""


@dataclass(frozen=True)
class Peak:
    """The most bytes that are alive at once, and the node, by operator and name, that runs then."""

    bytes: int
    node: str


def peak(opened: Opened, batch: int = 1) -> Peak:
    """The peak for so many images: outputs count, inputs and weights do not, nor what a kernel needs while it runs.

    `perf.planner.arena` measures the same in ONNX Runtime.
    """
    nodes = [*opened.graph]
    last = _last(opened, nodes)
    made: dict[ir.Value, ir.Value] = {}
    ends: dict[ir.Value, int] = {}
    sizes: dict[ir.Value, int] = {}
    outputs, inside = {*opened.graph.outputs}, _inside(opened.graph)
    for place, node in enumerate(nodes):
        for number, value in enumerate(node.outputs):
            sizes[value] = opened.bytes_of(value, batch)
            own = None
            if value in inside:
                own = made.get(inside[value])
            elif not number and value not in outputs:
                own = _taken(node, place, sizes[value], made, ends, sizes)
            made[value] = value if own is None else own
            ends[made[value]] = max(ends.get(made[value], place), last.get(value, place))
    leaving: dict[int, list[ir.Value]] = {}
    for value, end in ends.items():
        leaving.setdefault(end, []).append(value)
    alive, most = 0, Peak(0, "")
    for place, node in enumerate(nodes):
        alive += sum(sizes[value] for value in node.outputs if made[value] is value)
        if alive > most.bytes:
            most = Peak(alive, f"{node.op_type} {node.name}")
        alive -= sum(sizes[value] for value in leaving.get(place, ()))
    return most


def _last(opened: Opened, nodes: list[ir.Node]) -> dict[ir.Value, int]:
    """The place of the last node that reads each value; outputs live to the end."""
    found = {value: place for place, node in enumerate(nodes) for value in opened.reads(node)}
    return found | dict.fromkeys(opened.graph.outputs, len(nodes))


def _inside(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """What is computed between the input of an activation that is one kernel and its output, with that input."""
    found: dict[ir.Value, ir.Value] = {}
    for node in graph:
        first, behind = ACTIVATIONS.get(node.op_type, ("", ()))
        scaled = node.inputs[0] if node.inputs else None
        maker = None if scaled is None else scaled.producer()
        given = None if maker is None or maker.op_type != first else maker.inputs[0]
        if scaled is None or given is None:
            continue
        chain = [*_followed(node, behind)]
        times = next((each for each in chain if each.op_type == "Mul"), None)
        if len(chain) == len(behind) and times is not None and given in times.inputs:
            found |= dict.fromkeys((scaled, *(each.outputs[0] for each in (node, *chain[:-1]))), given)
    return found


def _followed(node: ir.Node, wanted: Sequence[str]) -> Iterator[ir.Node]:
    """The nodes behind one, each the only reader of the one before it, as long as they are what is wanted."""
    for operator in wanted:
        value = node.outputs[0]
        users = [*value.consumers()]
        if len(users) != 1 or users[0].op_type != operator or value.is_graph_output():
            return
        node = users[0]
        yield node


def _taken(
    node: ir.Node,
    place: int,
    size: int,
    made: dict[ir.Value, ir.Value],
    ends: dict[ir.Value, int],
    sizes: dict[ir.Value, int],
) -> ir.Value | None:
    """The tensor in whose memory the first output lies: that of what it is a view of, or that it is written over."""
    held = made.get(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    if held is None or (node.op_type in IN_PLACE and (ends[held] > place or sizes[held] != size)):
        return None
    return held if node.op_type in VIEWS or node.op_type in IN_PLACE else None
