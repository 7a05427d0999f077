"""What an operator of domain `tokenrt` is: attributes, NumPy reference, body of standard ONNX operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tokenrt.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

DOMAIN = "tokenrt"
VERSION = 1
LOWEST_OPSET = 13

Array = np.ndarray[Any, np.dtype[Any]]
AttributeKind = Literal["int", "float", "ints", "floats"]


Shape = tuple[int, ...]
Attributes = Mapping[str, Any]
MOST_WORK = 1 << 24
"""Multiply-adds and comparisons for one image that cost about what the launches cost that they save."""


@dataclass(frozen=True)
class Gpu:
    """Another body with the same results, for GPUs: what is one operator there is one launch, sorts and scatters most of all.

    body: its text, from a node's attributes and the shapes of its inputs behind the batch. work: multiply-adds and comparisons
    for one image, from the same. They grow with the square of the tokens where a sort does not, so above `MOST_WORK` the portable
    body is better.
    """

    body: Callable[[Attributes, Sequence[Shape]], str]
    work: Callable[[Attributes, Sequence[Shape]], float]

    def fits(self, attributes: Attributes, shapes: Sequence[Shape]) -> bool:
        """Whether it is the better body for a node with these attributes and shapes of inputs, without the batch."""
        return self.work(attributes, shapes) <= MOST_WORK


@dataclass(frozen=True)
class Operator:
    """One operator: the same contract for the ONNX function, the NumPy reference and the TensorRT plugin.

    `body` is ONNX text: the statements between the braces of a function. Attributes are read with `Constant
    <value_ints: ints = @name> ()`. An attribute that sets a size is a list of one number and goes straight
    into TopK or Slice: ONNX shape inference loses `value_int` and anything computed from an attribute. Only
    operators whose signature has not changed since opset 13 may appear, so that one body serves every opset
    from 13 on. Bodies stay flat: a nested call that passes an attribute on crashes the parser of TensorRT-RTX
    1.7. A Loop is for what is sequential by nature; its outputs need a shape from elsewhere.

    `types` names each output's element type: an ONNX type in NumPy's spelling, or an input whose type it
    shares. Every input and every attribute must be given on the node: neither TensorRT nor the ONNX inliner
    fills them in.

    `widens` names inputs that the body casts to float32 itself and the kernel reads in half: all of them in one
    type. Half precision reaches them as it is, and what is computed of it is that of the same numbers in float32;
    every other input but `tokens` is cast before the node.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: tuple[str, ...]
    attributes: Mapping[str, AttributeKind]
    body: str
    reference: Callable[..., Any]
    gpu: Gpu | None = None
    widens: tuple[str, ...] = ()

    def function(self, opset: int, body: str | None = None) -> onnx.FunctionProto:
        """Return the model-local function for a model that imports opset `opset`, with the portable body or another.

        Every value is named after the operator: TensorRT before 10.8 confuses equal names of different
        functions.

        Raises: UnsupportedError below opset 13.
        """
        import onnx.parser

        if opset < LOWEST_OPSET:
            raise UnsupportedError(
                f"operator {self.name} needs opset {LOWEST_OPSET} or later, the model imports {opset}; "
                "convert it first (onnx.version_converter)"
            )
        head = f'<domain: "{DOMAIN}", opset_import: ["": {opset}]>'
        names = f"({', '.join(self.inputs)}) => ({', '.join(self.outputs)})"
        attributes = f"<{', '.join(self.attributes)}> " if self.attributes else ""
        text = f"{head}\n{self.name} {attributes}{names}\n{{{body or self.body}}}"
        function = onnx.parser.parse_function(text)
        function.input[:] = [f"{self.name}_{value}" for value in function.input]
        function.output[:] = [f"{self.name}_{value}" for value in function.output]
        _prefix(function.node, f"{self.name}_")
        return function

    def settle(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes as this operator declares them; a lone number for a list becomes a list.

        Raises: TypeError for a missing or unknown name, which is a mistake of the calling code.
        """
        if set(attributes) != set(self.attributes):
            raise TypeError(f"{self.name} takes {sorted(self.attributes)}, got {sorted(attributes)}")
        return {name: _settle(kind, attributes[name]) for name, kind in self.attributes.items()}


def _prefix(nodes: Iterable[onnx.NodeProto], prefix: str) -> None:
    """Put `prefix` before every value name, those in the body of a Loop included."""
    for node in nodes:
        for values in (node.input, node.output):
            values[:] = [prefix + value for value in values]
        for graph in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
            for value in (*graph.input, *graph.output):
                value.name = prefix + value.name
            _prefix(graph.node, prefix)


def _settle(kind: AttributeKind, value: Any) -> Any:
    item = float if kind in {"float", "floats"} else int
    if kind in {"int", "float"}:
        return item(value)
    return [item(entry) for entry in (value if np.ndim(value) else [value])]
