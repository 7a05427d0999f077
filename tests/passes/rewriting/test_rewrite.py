"""Whole rewrites as text: which statements go, which come, with constants written where they are read."""

from __future__ import annotations

import re

import onnx
import onnx.printer
import onnx_ir as ir
import pytest

import tokenrt
from tests.passes.helpers import tiny
from tokenrt.errors import NothingToDoError
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.planning.plan import Budget


def statements(model: ir.Model) -> list[str]:
    """The statements of a graph, small constants in place of their names."""
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        node.ClearField("name")
    text = onnx.printer.to_text(proto.graph).rsplit("\n{", 1)[1].rsplit("}", 1)[0]
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.size <= 8 and "w" not in tensor.name:
            text = re.sub(
                rf"\b{tensor.name}\b", str(array.tolist()).replace("1.0000000031710769e-30", "1e-30"), text
            )
    text = re.sub(r"tokenrt_(?:block\d+|repair|mask|restore)_(\w+?)_(out|\w+)_(\d+)", r"\1.\2.\3", text)
    return [
        " ".join(line.split()).replace(": ints", "").replace(": int", "")
        for line in text.splitlines()
        if line.strip()
    ]


def changes(before: onnx.ModelProto, method: str, budget: Budget, **options: object) -> str:
    """Statements that went (-) and came (+), in the order of the graph after it."""
    old = statements(prepare(ir.from_proto(before)).model)
    new = statements(tokenrt.reduce(ir.from_proto(before), method=method, budget=budget, **options).model)  # type: ignore[arg-type]
    gone = [f"- {line}" for line in old if line not in new]
    return "\n".join([*gone, *(f"+ {line}" for line in new if line not in old)])


def expected(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def test_a_slice_touches_its_readers_and_the_counts_behind_it() -> None:
    assert changes(tiny.model(), "slice", Budget.remove(1, [0])) == expected(
        """
        - b0_up = MatMul (b0_attended, w1)
        - b1_in = Add (b0_attended, b0_down)
        - b1_qs = Reshape (b1_q, [0, 6, 2, 2])
        - b1_ks = Reshape (b1_k, [0, 6, 2, 2])
        - b1_vs = Reshape (b1_v, [0, 6, 2, 2])
        - b1_result = Reshape (b1_tokens, [0, 6, 4])
        + Slice.out.0 = Slice (b0_attended, [0], [5], [1])
        + b0_up = MatMul (Slice.out.0, w1)
        + b1_in = Add (Slice.out.0, b0_down)
        + b1_qs = Reshape (b1_q, [-1, 5, 2, 2])
        + b1_ks = Reshape (b1_k, [-1, 5, 2, 2])
        + b1_vs = Reshape (b1_v, [-1, 5, 2, 2])
        + b1_result = Reshape (b1_tokens, [-1, 5, 4])
        """
    )


def test_behind_a_block_its_readers_take_the_slice() -> None:
    found = changes(tiny.model(), "slice", Budget.remove(1, [0]), site="after-block")
    assert found.startswith(
        expected(
            """
            - b1_q = MatMul (b1_in, wq)
            - b1_k = MatMul (b1_in, wk)
            - b1_v = MatMul (b1_in, wv)
            """
        )
    )
    assert "+ Slice.out.0 = Slice (b1_in, [0], [5], [1])\n+ b1_q = MatMul (Slice.out.0, wq)" in found
    assert "+ b1_attended = Add (Slice.out.0, b1_result)" in found


def test_what_saves_no_work_is_refused() -> None:
    """Behind the last block only the class token is read."""
    with pytest.raises(NothingToDoError, match="saves no work"):
        tokenrt.reduce(
            ir.from_proto(tiny.model()), method="slice", budget=Budget.remove(1, [1]), site="after-block"
        )


def test_merging_threads_sizes_into_attention_and_pooling() -> None:
    found = changes(tiny.model(tiny.MEAN), "tome", Budget.remove(1, [0]))
    came = [line for line in found.splitlines() if line.startswith("+")]
    tail = came[next(index for index, line in enumerate(came) if "b1_qs" in line) :]
    assert "\n".join(tail) == expected(
        """
        + b1_qs = Reshape (b1_q, [-1, 5, 2, 2])
        + b1_ks = Reshape (b1_k, [-1, 5, 2, 2])
        + b1_vs = Reshape (b1_v, [-1, 5, 2, 2])
        + Reshape.out.2 = Reshape (TokenCombine.total.0, [-1, 1, 1, 5])
        + Max.out.0 = Max (Reshape.out.2, 1e-30)
        + Log.out.0 = Log (Max.out.0)
        + Add.out.0 = Add (b1_scores, Log.out.0)
        + b1_weights = Softmax <axis = -1> (Add.out.0)
        + b1_result = Reshape (b1_tokens, [-1, 5, 4])
        + Reshape.out.3 = Reshape (TokenCombine.total.0, [-1, 5, 1])
        + Mul.out.0 = Mul (b1_out, Reshape.out.3)
        + ReduceSum.out.0 = ReduceSum <keepdims = 0> (Mul.out.0, [1])
        + ReduceSum.out.1 = ReduceSum <keepdims = 0> (Reshape.out.3, [1])
        + Div.out.0 = Div (ReduceSum.out.0, ReduceSum.out.1)
        + y = MatMul (Div.out.0, w1)
        """
    )


def test_without_proportional_attention_only_the_pooling_counts_sizes() -> None:
    found = changes(tiny.model(tiny.MEAN), "tome", Budget.remove(1, [0]), proportional_attention=False)
    assert "Log" not in found
    assert "Mul.out.0 = Mul (b1_out" in found


def test_a_table_follows_the_tokens_that_stay() -> None:
    """Positions added between the blocks: a constant choice takes constant rows."""
    between = "  b1_in = Add (b0_out, places)\n"
    found = changes(tiny.model(between=between), "slice", Budget.remove(1, [0]))
    assert "- b1_in = Add (b0_out, places)" in found
    assert "Gather <axis = 1> (places, [0, 1, 2, 3, 4])" in found


def test_a_grid_gets_its_positions_back() -> None:
    """Neighbours are averaged between the blocks: the tokens are all there again before it."""
    between = (
        "  t = Transpose <perm = [0, 2, 1]> (b0_out)\n"
        "  u = AveragePool <kernel_shape = [3], pads = [1, 1]> (t)\n"
        "  b1_in = Transpose <perm = [0, 2, 1]> (u)\n"
    )
    found = changes(tiny.model(between=between), "tome", Budget.remove(1, [0]))
    assert "- t = Transpose <perm = [0, 2, 1]> (b0_out)" in found
    assert "TokenRestore.restored.0 = tokenrt.TokenRestore (b0_out, " in found
    assert "+ t = Transpose <perm = [0, 2, 1]> (TokenRestore.restored.0)" in found
    assert "b1_qs" not in found


def test_the_file_says_how_it_was_made() -> None:
    made = tokenrt.reduce(ir.from_proto(tiny.model()), method="tome", budget=Budget.remove(1))
    assert made.model.metadata_props["tokenrt.passes"] == (
        "canonicalize{}; reduce{method=tome,sites=0:5;1:4,proportional=true,every=2}"
    )
    assert "[[site]]" in made.model.metadata_props["tokenrt.plan"]


def test_names_of_new_nodes_are_plain_and_unique() -> None:
    """TensorRT writes them into its profile unescaped."""
    made = tokenrt.reduce(ir.from_proto(tiny.model(tiny.MEAN)), method="tome", budget=Budget.remove(1))
    names = [node.name for node in made.model.graph if node.name]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"\w+", name) for name in names if name.startswith("tokenrt"))
    values = [value.name for node in made.model.graph for value in node.outputs]
    assert len(values) == len(set(values))
