"""Each rule of the token axis: what passes, what is edited, what blocks. Graphs before and after, as ONNX text.

`x` counts tokens on axis 1: six before a reduction that leaves four; the first is protected.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import onnx_ir as ir
import pytest

from tokenrt.passes.analysis.flow import Cut, Flow, follow
from tokenrt.passes.analysis.marks import BiasKeys, Mark, ReduceAuxiliary, SetInput, WeighPool
from tokenrt.passes.analysis.rules import RULES
from tokenrt.passes.graph.shapes import annotate, infer

BEFORE, AFTER = 6, 4
X = "float[B,6,4] x"
HEADS = "float[B,2,6,8] x"


def graph(body: str, inputs: str = X, constants: str = "") -> ir.Model:
    """The statements as a model; constants are ONNX text, as in int64[2] s = {0, 24}."""
    opset = 23 if "Attention" in body or "RotaryEmbedding" in body else 18
    head = f'<ir_version: 10, opset_import: ["": {opset}, "own": 1]>'
    last = body.rstrip().splitlines()[-1].split("=")[0].strip().split(",")[0]
    text = f"{head}\nmain ({inputs}) => ({last}) <{constants}> {{\n{body}\n}}"
    return ir.from_proto(onnx.parser.parse_model(text))


def followed(model: ir.Model, axes: tuple[int, ...] = (1,), stage: int = 1, protect: int = 1) -> Flow:
    """The flow of a graph whose first input has so many reductions behind it."""
    shapes = infer(model)
    annotate(model.graph, shapes)
    seeds = {model.graph.inputs[0]: tuple(Mark(axis, stage) for axis in axes)}
    outputs = frozenset(model.graph.outputs)
    return follow(
        model.graph, shapes, seeds, tokens=BEFORE, protected=tuple(range(protect)), restored={None: outputs}
    )


def marks(model: ir.Model, flow: Flow) -> list[tuple[int, ...]]:
    """Axis of each mark on the output, and offset, outer and inner where they are not 0, 1 and 1."""
    found = flow.marks.get(model.graph.outputs[0], ())
    parts = [(m.axis, m.offset, m.outer, m.inner) for m in found]
    return [part if part[1:] != (0, 1, 1) else part[:1] for part in parts]


def edited(model: ir.Model, flow: Flow) -> str:
    """The statements and constants of the graph after its edits, one a line."""
    for edit in flow.edits:
        assert isinstance(edit, SetInput)
        old = edit.node.inputs[edit.index]
        assert old is not None
        array = np.asarray(edit.make([BEFORE, AFTER]), np.int64)
        old.const_value = ir.tensor(array, name=old.name)
    lines = [f"{v.name} = {v.const_value.numpy().tolist()}" for v in model.graph.initializers.values()]  # type: ignore[union-attr]
    return "\n".join(lines)


B = 1000003  # the prime that stands for the batch

# body, constants, marks of the output, constants after the edits
EDITS = {
    "Reshape-folds-heads": ("y = Reshape (x, s)", "int64[2] s = {0, 24}", [(1, 0, 1, 4)], "s = [-1, 16]"),
    "Reshape-splits-heads": ("y = Reshape (x, s)", "int64[4] s = {0, 6, 2, 2}", [(1,)], "s = [-1, 4, 2, 2]"),
    "Reshape-of-rows": ("y = Reshape (x, s)", "int64[2] s = {-1, 4}", [(0, 0, B, 1)], "s = [-1, 4]"),
    "Reshape-adds-an-axis": ("y = Reshape (x, s)", "int64[4] s = {-1, 1, 6, 4}", [(2,)], "s = [-1, 1, 4, 4]"),
    "Slice-drops-the-first": (
        "y = Slice (x, a, b, c)",
        "int64[1] a = {1}, int64[1] b = {6}, int64[1] c = {1}",
        [(1, 1, 1, 1)],
        "a = [1]\nb = [2147483647]\nc = [1]",
    ),
    "Slice-counted-from-the-end": (
        "y = Slice (x, a, b, c)",
        "int64[1] a = {-5}, int64[1] b = {9}, int64[1] c = {1}",
        [(1, 1, 1, 1)],
        "a = [1]\nb = [2147483647]\nc = [1]",
    ),
    "Slice-of-channels": (
        "y = Slice (x, a, b, c)",
        "int64[1] a = {1}, int64[1] b = {3}, int64[1] c = {2}",
        [(1,)],
        "a = [1]\nb = [3]\nc = [2]",
    ),
    "Slice-takes-the-first": (
        "y = Slice (x, a, b, c)",
        "int64[1] a = {0}, int64[1] b = {1}, int64[1] c = {1}",
        [],
        "a = [0]\nb = [1]\nc = [1]",
    ),
    "Split-takes-off-the-first": (
        "z, y = Split <axis = 1> (x, s)\ny2 = Relu (y)",
        "int64[2] s = {1, 5}",
        [(1, 1, 1, 1)],
        "s = [1, 3]",
    ),
    "Split-of-channels": ("y, z = Split <axis = 2> (x, s)", "int64[2] s = {1, 3}", [(1,)], "s = [1, 3]"),
    "Expand-of-another-axis": (
        "u = Unsqueeze (x, a)\ny = Expand (u, s)",
        "int64[1] a = {1}, int64[4] s = {1, 3, 6, 4}",
        [(2,)],
        "a = [1]\ns = [1, 3, 1, 1]",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_constants_follow_the_tokens(name: str) -> None:
    body, constants, expected, after = EDITS[name]
    model = graph(body, constants=constants)
    flow = followed(model)
    assert not flow.blocked
    assert marks(model, flow) == expected
    assert edited(model, flow) == after


@pytest.mark.parametrize("name", EDITS)
def test_before_any_reduction_nothing_is_edited(name: str) -> None:
    body, constants, expected, _ = EDITS[name]
    model = graph(body, constants=constants)
    flow = followed(model, stage=0)
    assert not flow.blocked
    assert not flow.edits
    assert marks(model, flow) == expected


WEIGHTS = "float[4,5] w = {" + ", ".join(["0.5"] * 20) + "}"
PER_CHANNEL = "float[4] c = {1, 2, 3, 4}"
# body, inputs, constants, marks of the output
PASSES = {
    "Relu": ("y = Relu (x)", X, "", [(1,)]),
    "Add-of-a-channel-bias": ("y = Add (x, c)", X, PER_CHANNEL, [(1,)]),
    "Add-of-two-streams": ("z = Relu (x)\ny = Add (x, z)", X, "", [(1,)]),
    "Transpose": ("y = Transpose <perm = [0, 2, 1]> (x)", X, "", [(2,)]),
    "Transpose-without-perm": ("y = Transpose (x)", X, "", [(1,)]),
    "Unsqueeze": ("y = Unsqueeze (x, a)", X, "int64[2] a = {0, -1}", [(2,)]),
    "Squeeze": ("u = Unsqueeze (x, a)\ny = Squeeze (u, a)", X, "int64[1] a = {1}", [(1,)]),
    "Flatten": ("y = Flatten <axis = 1> (x)", X, "", [(1, 0, 1, 4)]),
    "Gather-of-the-first": ("y = Gather <axis = 1> (x, i)", X, "int64 i = {0}", []),
    "Gather-of-channels": ("y = Gather <axis = 2> (x, i)", X, "int64[2] i = {0, 3}", [(1,)]),
    "MatMul-with-weights": ("y = MatMul (x, w)", X, WEIGHTS, [(1,)]),
    "MatMul-of-queries-and-keys": (
        "t = Transpose <perm = [0, 1, 3, 2]> (x)\ny = MatMul (x, t)",
        HEADS,
        "",
        [(2,), (3,)],
    ),
    "LayerNormalization": ("y = LayerNormalization <axis = -1> (x, c)", X, PER_CHANNEL, [(1,)]),
    "Softmax-of-channels": ("y = Softmax <axis = -1> (x)", X, "", [(1,)]),
    "ReduceMean-of-channels": ("y = ReduceMean <keepdims = 0> (x, a)", X, "int64[1] a = {2}", [(1,)]),
    "ReduceSum-keeps": ("y = ReduceSum <keepdims = 1> (x, a)", X, "int64[1] a = {-1}", [(1,)]),
    "ReduceMax-over-tokens": ("y = ReduceMax <keepdims = 0> (x, a)", X, "int64[1] a = {1}", []),
    "ArgMax-of-channels": ("y = ArgMax <axis = 2, keepdims = 0> (x)", X, "", [(1,)]),
    "Concat-of-channels": ("z = Relu (x)\ny = Concat <axis = 2> (x, z)", X, "", [(1,)]),
    "Concat-puts-the-first-back": (
        "f = Slice (x, n, o, o)\nr = Slice (x, o, e, o)\ny = Concat <axis = 1> (f, r)",
        X,
        "int64[1] n = {0}, int64[1] o = {1}, int64[1] e = {6}",
        [(1,)],
    ),
    "Attention": ("y = Attention (x, x, x)", HEADS, "", [(2,)]),
    "Identity": ("y = Identity (x)", X, "", [(1,)]),
    "Where": ("n = IsNaN (x)\ny = Where (n, c, x)", X, PER_CHANNEL, [(1,)]),
}


@pytest.mark.parametrize("name", PASSES)
def test_marks_pass(name: str) -> None:
    body, inputs, constants, expected = PASSES[name]
    model = graph(body, inputs, constants)
    flow = followed(model, (2,) if inputs == HEADS else (1,))
    assert not flow.blocked, flow.blocked[0].describe()
    assert marks(model, flow) == expected


SQUARE = "float[6,6] m = {" + ", ".join(["1"] * 36) + "}"
# body, inputs, constants, words of the reason, its kind
BLOCKS = {
    "own-operator": ("y = own.Mystery (x)", X, "", "no rule for this operator .*axis 1 of 'x' .B,6,4.", "operator"),
    "MatMul-mixes-tokens": ("t = Transpose <perm = [0, 2, 1]> (x)\ny = MatMul (t, m)", X, SQUARE, "token mixing", "operator"),
    "Reshape-of-pairs": ("y = Reshape (x, s)", X, "int64[3] s = {0, 3, 8}", "grid or into windows", "grid"),
    "Conv": ("y = Conv (x, k)", X, "float[6,6,1] k = {" + ", ".join(["1"] * 36) + "}", "needs all of them", "grid"),
    "TopK": ("y, i = TopK <axis = 1> (x, k)", X, "int64[1] k = {2}", "needs all of them", "grid"),
    "CumSum": ("y = CumSum (x, a)", X, "int64 a = {1}", "needs all of them", "grid"),
    "Slice-in-the-middle": (
        "y = Slice (x, a, b, c)", X, "int64[1] a = {2}, int64[1] b = {4}, int64[1] c = {1}", "tokens 2 to 4 by position", "grid",
    ),
    "Slice-of-every-other": (
        "y = Slice (x, a, b, c, d)", X, "int64[1] a = {0}, int64[1] b = {6}, int64[1] c = {1}, int64[1] d = {2}", "by position", "grid",
    ),
    "Gather-in-the-middle": ("y = Gather <axis = 1> (x, i)", X, "int64[2] i = {0, 3}", "by position", "grid"),
    "Gather-of-the-last": ("y = Gather <axis = 1> (x, i)", X, "int64 i = {-1}", "by position", "grid"),
    "Split-in-halves": ("y, z = Split <axis = 1, num_outputs = 2> (x)", X, "", "behind the protected", "grid"),
    "Concat-of-tokens": ("z = Relu (x)\ny = Concat <axis = 1> (x, z)", X, "", "joins tokens with other tokens", "grid"),
    "LayerNormalization-of-tokens": (
        "y = LayerNormalization <axis = 1> (x, g)", X, "float[6,4] g = {" + ", ".join(["1"] * 24) + "}", "normalises over the token axis", "operator",
    ),
    "Softmax-of-queries": ("y = Softmax <axis = 1> (x)", X, "", "axis other than the last", "operator"),
    "ReduceProd": ("y = ReduceProd (x, a)", X, "int64[1] a = {1}", "no form weighted by size", "operator"),
    "ArgMax-of-tokens": ("y = ArgMax <axis = 1> (x)", X, "", "positions of tokens", "operator"),
    "Attention-with-a-cache": (
        "y, pk, pv = Attention (x, x, x, , past, past)", f"{HEADS}, float[B,2,3,8] past", "", "key-value cache", "operator",
    ),
    "Attention-causal": ("y = Attention <is_causal = 1> (x, x, x)", HEADS, "", "causal", "operator"),
    "If": (
        "y = If (c) <then_branch = t () => (float[B,6,4] u) { u = Relu (x) }, else_branch = e () => (float[B,6,4] v) { v = Abs (x) }>",
        f"{X}, bool c", "", "branches or its body read tokens", "operator",
    ),
    "Div-for-each-pair": (
        "t = Transpose <perm = [0, 1, 3, 2]> (x)\ns = MatMul (x, t)\ny = Div (s, m)", HEADS, SQUARE, "neither added nor a factor", "operator",
    ),
    "Gemm-over-tokens": ("r = Reshape (x, s)\ny = Gemm <transA = 1> (r, r)", X, "int64[2] s = {-1, 4}", "token mixing", "operator"),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_what_cannot_follow_blocks_by_name(name: str) -> None:
    body, inputs, constants, reason, kind = BLOCKS[name]
    model = graph(body, inputs, constants)
    flow = followed(model, (2,) if HEADS in inputs else (1,))
    (blocked,) = flow.blocked
    assert blocked.kind == kind
    assert blocked.node is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(blocked.describe())
    assert blocked.node.op_type in blocked.describe()


def test_two_lengths_that_meet_block() -> None:
    """A reduction at r; y adds what is behind it to what is before it."""
    model = graph("r = Relu (x)\ny = Add (r, x)")
    site = model.graph[0].outputs[0]
    seeds = {model.graph.inputs[0]: (Mark(1),)}
    flow = follow(model.graph, infer(model), seeds, tokens=BEFORE, protected=(0,), sites=[Cut(site)])
    (blocked,) = flow.blocked
    assert blocked.kind == "mixed"
    assert blocked.describe() == (
        "Add node '': tokens of reduction 1 meet tokens of the original length on axis 1"
    )


def test_restored_readers_see_the_original_length() -> None:
    model = graph(
        "r = Relu (x)\ny = Conv (r, k)", constants="float[6,6,1] k = {" + ", ".join(["1"] * 36) + "}"
    )
    site, conv = model.graph[0].outputs[0], model.graph[1]
    seeds = {model.graph.inputs[0]: (Mark(1),)}
    options = {"tokens": BEFORE, "protected": (0,), "sites": [Cut(site)]}
    flow = follow(model.graph, infer(model), seeds, **options)
    assert flow.blocked[0].node is conv
    assert flow.inputs[conv][0] == (Mark(1, 1),)
    restored = follow(model.graph, infer(model), seeds, **options, restored={conv: frozenset([site])})
    assert restored.inputs[conv][0] == (Mark(1),)


def test_a_cut_is_seen_by_its_readers_only() -> None:
    """Tokens leave at x for the first node; the second reads all of them."""
    model = graph("a = Relu (x)\nb = Sigmoid (x)\ny = Concat <axis = 2> (a, b)")
    x, first = model.graph.inputs[0], model.graph[0]
    options = {"tokens": BEFORE, "protected": (0,), "sites": [Cut(x, frozenset([first]))]}
    flow = follow(model.graph, infer(model), {x: (Mark(1),)}, **options)
    assert [mark.stage for node in list(model.graph)[:2] for mark in flow.inputs[node][0]] == [1, 0]
    assert flow.blocked[0].kind == "mixed"


def test_an_output_per_token_blocks_unless_it_is_restored() -> None:
    model = graph("y = Relu (x)")
    seeds = {model.graph.inputs[0]: (Mark(1, 1),)}
    flow = follow(model.graph, infer(model), seeds, tokens=BEFORE, protected=(0,))
    assert flow.blocked[0].describe() == "output 'y' has one entry per token"


AUXILIARY = {
    "position-table": ("y = Add (x, p)", X, "float[1,6,4] p = {" + ", ".join(["1"] * 24) + "}", "place", ((1, 1),)),
    "rotary-table": ("y = Mul (x, p)", HEADS, "float[6,8] p = {" + ", ".join(["1"] * 48) + "}", "place", ((0, 2),)),
    "one-number-a-token": ("y = Mul (x, p)", X, "float[6,1] p = {1, 1, 1, 1, 1, 1}", "weight", ((0, 1),)),
    "score-bias": (
        "t = Transpose <perm = [0, 1, 3, 2]> (x)\ns = MatMul (x, t)\ny = Add (s, p)", HEADS, SQUARE.replace(" m ", " p "), "logits", ((0, 2), (1, 3)),
    ),
    "factor-for-each-pair": (
        "t = Transpose <perm = [0, 1, 3, 2]> (x)\ns = MatMul (x, t)\ny = Mul (s, p)", HEADS, SQUARE.replace(" m ", " p "), "weight", ((0, 2), (1, 3)),
    ),
    "key-mask": (
        "t = Transpose <perm = [0, 1, 3, 2]> (x)\ns = MatMul (x, t)\ny = Add (s, p)", HEADS, "float[1,1,1,6] p = {0, 0, 0, 0, 0, 0}", "logits", ((3, 3),),
    ),
    "attention-mask": ("y = Attention (x, x, x, p)", HEADS, SQUARE.replace(" m ", " p "), "logits", ((0, 2), (1, 2))),
}  # fmt: skip


@pytest.mark.parametrize("name", AUXILIARY)
def test_what_has_one_entry_per_token_follows(name: str) -> None:
    body, inputs, constants, role, axes = AUXILIARY[name]
    flow = followed(graph(body, inputs, constants), (2,) if inputs == HEADS else (1,))
    assert not flow.blocked
    (edit,) = (edit for edit in flow.edits if isinstance(edit, ReduceAuxiliary))
    assert edit.role == role
    assert tuple((own, mark.axis) for own, mark in edit.axes) == axes


def test_a_channel_bias_as_long_as_the_tokens_is_left_alone() -> None:
    """Six channels, six tokens: what is added along the channels is no table of tokens."""
    flow = followed(graph("y = Add (x, p)", "float[B,6,6] x", "float[6] p = {1, 2, 3, 4, 5, 6}"))
    assert not flow.blocked
    assert not flow.edits


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        ("t = Transpose <perm = [0, 1, 3, 2]> (x)\ns = MatMul (x, t)\np = Softmax <axis = -1> (s)\ny = MatMul (p, x)", [BiasKeys]),
        ("y = Attention (x, x, x)", [BiasKeys]),
        ("y = ReduceMean <keepdims = 0> (x, a)", [WeighPool]),
        ("y = ReduceSum <keepdims = 0> (x, a)", [WeighPool]),
        ("y = ReduceMax <keepdims = 0> (x, a)", []),
    ],
)  # fmt: skip
def test_sizes_count(body: str, kinds: list[type]) -> None:
    flow = followed(graph(body, HEADS, "int64[1] a = {2}"), (2,))
    assert not flow.blocked
    assert [type(edit) for edit in flow.edits] == kinds


def test_every_rule_is_a_function_with_a_name() -> None:
    assert all(callable(rule) for rule in RULES.values())
    assert {domain for domain, _ in RULES} <= {"", "com.microsoft"}
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    quirks = {"SimplifiedLayerNormalization"}  # ONNX Runtime puts it into the standard domain
    assert {name for domain, name in RULES if domain == ""} <= standard | quirks
