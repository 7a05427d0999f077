"""The way of a token that no block works on: along the trunk of the stream, past what the blocks add to it.

A token that has left takes no part in attention nor MLP, but where it comes back it must be what the others are: behind
the same norms, products and activations. At a residual addition it skips the branch; whatever else lies on the way is
done to it as well, and what cannot be done to a token alone blocks, naming the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from tokenrt.passes.analysis.flow import Cut, Flow
from tokenrt.passes.analysis.marks import Blocked
from tokenrt.passes.analysis.rules import elementwise, reduction

PRODUCTS = frozenset(
    "Attention Conv Einsum FusedMatMul Gemm MatMul MatMulInteger MatMulIntegerToFloat QLinearMatMul".split()
)
"""Where a branch of a residual addition begins to be something else than the stream it came of."""

PER_TOKEN = frozenset(
    (
        *elementwise.STANDARD,
        *elementwise.CONTRIB,
        *(name for _, name in reduction.RULES),
        *"Einsum FusedMatMul Gemm MatMul".split(),
        *"Concat Expand Flatten Gather Reshape Slice Split Squeeze Transpose Unsqueeze".split(),
        *"DequantizeLinear QuantizeLinear".split(),
    )
)
"""Operators that give one row per token of one row per token, if one axis counts the tokens before and behind."""

ADDITIONS = frozenset({"Add", "Sub", "Sum"})


@dataclass(frozen=True)
class Step:
    """One node on a way. tokens: the inputs that the tokens come by; skips: a residual addition, of which only they remain."""

    node: ir.Node
    tokens: tuple[int, ...]
    skips: bool = False


@dataclass(frozen=True)
class Way:
    """The nodes, in graph order, that make `value` of the tokens at `sources`."""

    value: ir.Value
    sources: tuple[ir.Value, ...]
    steps: tuple[Step, ...]

    @property
    def changes(self) -> bool:
        """Whether anything on it is done to a token that skips the branches."""
        return any(not step.skips or _negated(step) for step in self.steps)


def _negated(step: Step) -> bool:
    """Whether the trunk is what a Sub takes away."""
    return step.skips and step.node.op_type == "Sub" and step.tokens == (1,)


@dataclass
class Trunk:
    """The ways through one flow; what has been found of a node is kept."""

    flow: Flow
    _forks: dict[ir.Node, int | None] = field(default_factory=dict)

    def way(self, value: ir.Value, cut: Cut) -> Way:
        """From the tokens that left at `cut` to those at `value`. Raises: Blocked, naming the node they cannot pass."""
        behind = _behind(cut.value)

        def step(node: ir.Node) -> Step:
            marked = self._marked(node)
            trunk = self._trunk(node, marked)
            made = Step(node, tuple(marked) if trunk is None else (trunk,), trunk is not None)
            self._check(made, behind)
            return made

        return self._walk(value, frozenset((cut.value,)), step)

    def whole(self, value: ir.Value, body: frozenset[ir.Value]) -> Way:
        """From the tokens at values of `body` to `value`, with all that the model does to them."""
        return self._walk(value, body, lambda node: Step(node, tuple(self._marked(node))))

    def _walk(self, value: ir.Value, stops: frozenset[ir.Value], step: Callable[[ir.Node], Step]) -> Way:
        found: dict[ir.Node, Step] = {}
        sources: dict[ir.Value, None] = {}
        todo = [value]
        while todo:
            here = todo.pop()
            node = here.producer()
            if here in stops or node is None or node not in self.flow.inputs:
                sources[here] = None
            elif node not in found:
                found[node] = step(node)
                todo.extend(data for i in found[node].tokens if (data := node.inputs[i]) is not None)
        return Way(value, tuple(sources), tuple(found[node] for node in self.flow.inputs if node in found))

    def _marked(self, node: ir.Node) -> list[int]:
        """The inputs of a node that count tokens."""
        return [index for index, marks in enumerate(self.flow.inputs[node]) if marks]

    def _trunk(self, node: ir.Node, marked: list[int]) -> int | None:
        """The input of a residual addition that is the stream itself, or None where the node is none."""
        if node.op_type not in ADDITIONS or len(marked) < 2:
            return None
        if node not in self._forks:
            values = {index: node.inputs[index] for index in marked}
            above = {index: self._above((value,)) for index, value in values.items()}
            stream = {index: self._above((value,), PRODUCTS) for index, value in values.items()}
            trunks = [
                index
                for index in marked
                if all(
                    stream[index] & above[other]
                    and not self._shares(stream[other], values[index], above[index])
                    for other in marked
                    if other != index
                )
            ]
            self._forks[node] = trunks[0] if trunks else None
        return self._forks[node]

    def _shares(self, branch: set[ir.Value], trunk: ir.Value | None, above: set[ir.Value]) -> bool:
        """Whether a branch holds values of the trunk itself; one that is added in parts was added to the trunk before."""
        return bool(branch & above) and bool(branch & self._above((trunk,), past=True))

    def _above(
        self, values: Iterable[ir.Value | None], stops: frozenset[str] = frozenset(), *, past: bool = False
    ) -> set[ir.Value]:
        """Values on the token axis that these are made of, themselves included, up to nodes of type `stops`.

        past: past residual additions by their trunk alone.
        """
        found: set[ir.Value] = set()
        todo = [value for value in values if value is not None]
        while todo:
            value = todo.pop()
            if value in found or not self.flow.marks.get(value):
                continue
            found.add(value)
            node = value.producer()
            if node is None or node.op_type in stops:
                continue
            trunk = self._trunk(node, self._marked(node)) if past and node in self.flow.inputs else None
            followed = node.inputs if trunk is None else (node.inputs[trunk],)
            todo.extend(data for data in followed if data is not None)
        return found

    def _check(self, step: Step, behind: frozenset[ir.Value]) -> None:
        """Whether a token can be taken past a node by itself. Raises: Blocked."""
        node = step.node
        for index in step.tokens:
            if node.inputs[index] not in behind:
                raise Blocked(
                    node, f"its input {index} is not made of the tokens that left, but of others beside them"
                )
        if step.skips:
            return
        before = [mark for index in step.tokens for mark in self.flow.inputs[node][index]]
        after = [self.flow.marks.get(value, ()) for value in node.outputs if value.uses()]
        plain = len(before) == len(step.tokens) and all(len(marks) == 1 for marks in after)
        marks = [*before, *(mark for made in after for mark in made)]
        if node.op_type not in PER_TOKEN or not plain or any(mark.weighed for mark in marks):
            raise Blocked(node, "it mixes tokens with one another, and those that left took no part in that")
        # What leads tokens that others are folded into goes another way and comes back as it is: no token is among it.
        led = node.op_type == "Concat" and any(made and made[0].lead for made in after)
        if any((mark.offset or mark.joint) and mark.outer == mark.inner == 1 for mark in marks):
            raise Blocked(node, "it parts the protected tokens from the others")
        for index, value in enumerate(node.inputs):
            if value in behind and index not in step.tokens and not led:
                raise Blocked(node, f"its input {index} is made of other tokens")


def _behind(value: ir.Value) -> frozenset[ir.Value]:
    """Everything that is made of a value, itself included."""
    found, todo = {value}, [value]
    while todo:
        for node, _ in todo.pop().uses():
            fresh = [made for made in node.outputs if made not in found]
            found.update(fresh)
            todo.extend(fresh)
    return frozenset(found)
