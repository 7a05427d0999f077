"""Wrong rewrites, planted: each is caught, told as a fault of tokenrt's own, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.helpers.refusals import state
from tokenrt.errors import OURS, ProofError
from tokenrt.passes import reducer as verb
from tokenrt.passes.analysis.prepare import Prepared, prepare
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.rewriting import prove as proof
from tokenrt.passes.rewriting import whole
from tokenrt.passes.rewriting.rewrite import Rewriter

HEAD = tiny.CLASS + "  z = Relu (y)\n  few = ReduceMax <axes = [1], keepdims = 0> (y)\n"
OUTPUT = "float[B,8] y, float[B,8] z, float[B] few"
Damage = Callable[[ir.Graph], None]


def given(inputs: str = "float[B,6,4] x", output: str = OUTPUT, head: str = HEAD) -> ir.Model:
    return ir.from_proto(tiny.model(head, inputs=inputs, output=output))


def swap_names(graph: ir.Graph) -> None:
    """Both have one type and one shape: only the names in their order tell."""
    first, second = graph.outputs[:2]
    graph.outputs[0], graph.outputs[1] = second, first


def lose(graph: ir.Graph) -> None:
    del graph.outputs[1]


def twice(graph: ir.Graph) -> None:
    graph.outputs[1] = graph.outputs[0]


def rename(graph: ir.Graph) -> None:
    graph.outputs[1].name = "other"


def add(graph: ir.Graph) -> None:
    graph.outputs.append(next(iter(graph)).outputs[0])


def _behind(graph: ir.Graph, place: int, node: ir.Node, kind: ir.DataType, dims: list[int | str]) -> None:
    graph.append(node)
    old, new = graph.outputs[place], node.outputs[0]
    old.name, new.name = f"{old.name}_old", old.name
    new.type, new.shape = ir.TensorType(kind), ir.Shape(dims)
    graph.outputs[place] = new


def cast(graph: ir.Graph) -> None:
    node = ir.Node("", "Cast", [graph.outputs[1]], [ir.AttrInt64("to", int(ir.DataType.FLOAT16))], name="c")
    _behind(graph, 1, node, ir.DataType.FLOAT16, ["B", 8])


def cast_and_lie(graph: ir.Graph) -> None:
    node = ir.Node("", "Cast", [graph.outputs[1]], [ir.AttrInt64("to", int(ir.DataType.FLOAT16))], name="c")
    _behind(graph, 1, node, ir.DataType.FLOAT, ["B", 8])


def _constant(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    array = np.asarray(numbers, np.int64)
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value


def turn(graph: ir.Graph) -> None:
    node = ir.Node("", "Transpose", [graph.outputs[1]], [ir.AttrInt64s("perm", [1, 0])], name="t")
    _behind(graph, 1, node, ir.DataType.FLOAT, [8, "B"])


def shorten(graph: ir.Graph) -> None:
    bounds = [_constant(graph, f"bound{place}", [number]) for place, number in enumerate((0, 7, 1))]
    node = ir.Node("", "Slice", [graph.outputs[1], *bounds], name="s")
    _behind(graph, 1, node, ir.DataType.FLOAT, ["B", 7])


def fix_batch(graph: ir.Graph) -> None:
    graph.inputs[0].shape = ir.Shape([2, 6, 4])


def lose_input(graph: ir.Graph) -> None:
    graph.inputs.append(ir.Value(name="more", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1])))


def mismatch(graph: ir.Graph) -> None:
    """A product whose sizes do not fit, as inference meets it."""
    wrong = ir.Node("", "MatMul", [graph.outputs[0], graph.outputs[0]], name="odd")
    graph.append(wrong)
    _behind(graph, 1, ir.Node("", "Relu", wrong.outputs, name="r"), ir.DataType.FLOAT, ["B", 8])


DAMAGE: dict[str, tuple[Damage, str]] = {
    "swapped": (swap_names, "expected outputs y, z, few, got outputs z, y, few"),
    "lost": (lose, "expected outputs y, z, few, got outputs y, few"),
    "twice": (twice, "expected outputs y, z, few, got outputs y, y, few"),
    "renamed": (rename, "expected outputs y, z, few, got outputs y, other, few"),
    "added": (add, "expected outputs y, z, few, got outputs y, z, few, "),
    "type": (cast, r"expected output 'z' float\[\?,8\], got 'z' float16"),
    "type-undeclared": (cast_and_lie, "(shape inference|another type)"),
    "turned": (turn, r"At tensor 'z': expected \[B,8\], got \[8,B\]"),
    "shorter": (shorten, r"output 'z' float\[\?,8\], got 'z' float\[\?,7\]"),
    "batch": (fix_batch, r"(another shape|expected \[B,8\], got \[2,8\])"),
    "input": (lose_input, "expected inputs x, got inputs x, more"),
    "inference": (
        mismatch,
        r"fails shape inference.* At MatMul node 'odd': .*got 'y' \[B,8\] and 'y' \[B,8\]",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_wrong_rewrite_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damage, message = DAMAGE[kind]
    right = Rewriter.run

    def wrong(self: Rewriter) -> None:
        right(self)
        damage(self.graph)

    monkeypatch.setattr(Rewriter, "run", wrong)
    before = state(tmp_path)
    with pytest.raises(ProofError, match=message) as caught:
        tokenrt.reduce(given(), method="slice", budget=Budget.remove(1), output=tmp_path / "r.onnx")
    text = str(caught.value)
    assert OURS in text
    assert "\n" not in text
    line = "send this line: tokenrt {}, method slice, plan reduce{{method=slice,sites=0:5;1:4"
    assert line.format(tokenrt.__version__) in text
    assert state(tmp_path) == before


def test_what_is_right_passes_with_the_outputs_that_were_asked_for() -> None:
    made = tokenrt.reduce(given(), method="slice", budget=Budget.remove(1), source_map=True).model
    assert [value.name for value in made.graph.outputs] == ["y", "z", "few", "token_source_map"]


BATCH_IS_TOKENS = {"inputs": "float[6,6,4] x", "output": "float[6,8] y", "head": tiny.CLASS}


@pytest.fixture
def misled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An analysis that takes the batch for the tokens where both are 6."""

    def wrong(model: ir.Model, *_: object) -> Prepared:
        right = prepare(model, None)
        (structure,) = right.transformers
        entry = structure.blocks[0].entry
        assert right.shapes.of(entry) == (6, 6, 4)
        (mark,) = structure.origins[entry]
        origins = {entry: (replace(mark, axis=0),)}
        stream = replace(structure.stream, marks=origins[entry], order="sequence")
        return replace(right, transformers=(replace(structure, origins=origins, stream=stream),))

    monkeypatch.setattr(verb, "prepare", wrong)
    monkeypatch.setattr(Prepared, "again", lambda self, protect: self)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.usefixtures("misled")
def test_a_batch_as_long_as_the_tokens_is_not_taken_for_them(layer: int) -> None:
    """By the rules: whichever block it sits behind, the last included."""
    with pytest.raises(ProofError, match=r"expected tokens on axis 3 .*, got tokens on axes 0"):
        tokenrt.reduce(
            given(**BATCH_IS_TOKENS), method="slice", budget=Budget.remove(1, layers=[layer]), allow_noop=True
        )


@pytest.mark.usefixtures("misled")
def test_nor_by_the_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the rules wrong as well, attention behind the reduction still runs over all six."""
    believing = proof.attended

    def misinformed(*args: object) -> list[proof.Attended]:
        return [replace(axis, fault="", count=5) for axis in believing(*args)]  # type: ignore[arg-type]

    monkeypatch.setattr(whole, "attended", misinformed)
    with pytest.raises(ProofError, match="attention does not run over the tokens that are left"):
        tokenrt.reduce(given(**BATCH_IS_TOKENS), method="slice", budget=Budget.remove(1, layers=[0]))
