"""Who may see whom: masks of every kind over the tiny model, and whether each is taken, or refused in true words."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tests.passes.helpers import tiny
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.analysis.visibility.relation import connected, describe

N = tiny.TOKENS
SOFTMAX = "  b{n}_weights = Softmax <axis = -1> (b{n}_scores)\n"
PLACE = np.arange(N)
CAUSAL = PLACE[None] <= PLACE[:, None]
PREFIX = CAUSAL | (PLACE[None] < 3)
FRAMES = PLACE[None] // 2 <= PLACE[:, None] // 2
APART = PLACE[None] // 3 == PLACE[:, None] // 3
BAND = np.abs(PLACE[None] - PLACE[:, None]) < 3
ONE_WAY = ~((PLACE[None] < 2) & (PLACE[:, None] >= 2))
LOW = np.float32(-1e9)


def model(lines: str, arrays: dict[str, np.ndarray], *inputs: str, opset: int = 17) -> ir.Model:
    """The tiny model with these lines from its scores to `b{n}_masked`, which the softmax reads."""
    attention = tiny.ATTENTION.replace(SOFTMAX, lines + SOFTMAX.replace("scores", "masked"))
    proto = tiny.model(
        tiny.MEAN, attention=attention, inputs=", ".join(("float[B,6,4] x", *inputs)), opset=opset
    )
    held = {"low": LOW, "nil": np.float32(0), **arrays}
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in held.items() if name in used
    )
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def found(*args: object, **options: int) -> tuple[int, str]:
    """Blocks where tokens may merge, and the refusals."""
    prepared = prepare(model(*args, **options))  # type: ignore[arg-type]
    reasons = "\n".join(f"{refusal.where}: {refusal.reason}" for refusal in prepared.refusals)
    return merging(prepared.transformers), reasons


def merging(transformers: Iterable[Structure]) -> int:
    return sum(not block.apart for structure in transformers for block in structure.blocks)


def bias(shown: np.ndarray) -> np.ndarray:
    return np.where(shown, 0, LOW).astype(np.float32)


ADD = "  b{n}_masked = Add (b{n}_scores, m)\n"
SHOW = "  b{n}_masked = Where (m, b{n}_scores, low)\n"
APART_WORDS = "2 groups of tokens .windows, frames or pictures. apart .token 0 sees 0 to 2 but not 3."
REFUSED = {
    "causal": (CAUSAL, "causal .token 0 sees 0 but not 1."),
    "prefix": (
        PREFIX,
        "causal behind a prefix of 3 tokens .token 0 sees 0 to 2 but not 3.*--protect 3:",
    ),
    "frames": (FRAMES, "causal over frames of 2 tokens .token 0 sees 0 to 1 but not 2."),
    "groups": (APART, APART_WORDS),
    "one way": (ONE_WAY, "some tokens see others that never see them .token 2 sees 2 to 5 but not 0."),
}
TAKEN = {"band": BAND, "not itself": ~np.eye(N, dtype=bool), "padding": np.tile(PLACE < 4, (N, 1))}


@pytest.mark.parametrize("form", ["added", "shown", "gate"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_mask_that_keeps_tokens_apart_is_refused_for_what_it_does(kind: str, form: str) -> None:
    shown, words = REFUSED[kind]
    if form == "gate":
        made = tiny.ATTENTION.replace("b{n}_mixed = MatMul (b{n}_weights,", "b{n}_mixed = MatMul (b{n}_left,")
        gate = "  b{n}_left = Mul (b{n}_weights, m)\n  b{n}_mixed"
        proto = tiny.model(tiny.MEAN, attention=made.replace("  b{n}_mixed", gate))
        proto.graph.initializer.append(numpy_helper.from_array(shown.astype(np.float32), "m"))
        prepared = prepare(ir.from_proto(proto))
        blocks, why = merging(prepared.transformers), str(prepared.refusals)
    else:
        lines, array = (ADD, bias(shown)) if form == "added" else (SHOW, shown)
        blocks, why = found(lines, {"m": array})
    assert blocks == 0
    assert re.search(words, why), why


@pytest.mark.parametrize("kind", TAKEN)
def test_a_mask_that_keeps_nobody_apart_is_taken(kind: str) -> None:
    for lines, array in ((ADD, bias(TAKEN[kind])), (SHOW, TAKEN[kind])):
        assert found(lines, {"m": array}) == (2, "")


def test_every_head_must_keep_them_apart() -> None:
    assert found(ADD, {"m": bias(np.stack([CAUSAL, CAUSAL])[None])})[0] == 0
    assert found(ADD, {"m": bias(np.stack([CAUSAL, CAUSAL | True])[None])})[0] == 2


def test_two_masks_that_hide_together() -> None:
    lines = "  b{n}_half = Add (b{n}_scores, m)\n  b{n}_masked = Where (o, b{n}_half, low)\n"
    assert found(lines, {"m": bias(CAUSAL | APART), "o": CAUSAL | ~APART})[0] == 0


def test_a_bias_that_does_not_hide_is_taken() -> None:
    slopes = -np.abs(PLACE[None] - PLACE[:, None]).astype(np.float32)
    assert found(ADD, {"m": slopes}) == (2, "")


RUN_TIME = "depends on both who looks and who is seen, and is computed at run time"
POSITIONS = "int64[B,6] p"
COLUMN = "  b{n}_col = Unsqueeze (p, last)\n  b{n}_row = Unsqueeze (p, first)\n"
AXES = {"last": np.array([1, 3]), "first": np.array([1, 2])}
REST = "  b{n}_masked = Where (b{n}_seen, b{n}_scores, low)\n"
INPUT_DECIDES = {
    **{
        kind: (COLUMN + f"  b{{n}}_seen = {kind} (b{{n}}_row, b{{n}}_col)\n" + REST, AXES, [POSITIONS])
        for kind in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
    },
    "difference": (
        COLUMN
        + "  b{n}_away = Sub (b{n}_col, b{n}_row)\n  b{n}_seen = GreaterOrEqual (b{n}_away, none)\n"
        + REST,
        {**AXES, "none": np.array(0)},
        [POSITIONS],
    ),
    "place against a constant": (
        "  b{n}_row = Unsqueeze (p, first)\n  b{n}_seen = LessOrEqual (b{n}_row, numbers)\n" + REST,
        {**AXES, "numbers": PLACE[:, None] + 3},
        [POSITIONS],
    ),
    "difference from a constant": (
        "  b{n}_row = Unsqueeze (p, first)\n  b{n}_away = Sub (b{n}_row, numbers)\n"
        "  b{n}_seen = LessOrEqual (b{n}_away, none)\n" + REST,
        {**AXES, "numbers": PLACE[:, None] + 3, "none": np.array(0)},
        [POSITIONS],
    ),
    "given whole": (ADD, {}, ["float[B,1,6,6] m"]),
    "given whole, as a condition": (SHOW, {}, ["bool[B,1,6,6] m"]),
    "lower triangle": (
        "  b{n}_full = Expand (m, all)\n  b{n}_low = Trilu <upper = 0> (b{n}_full)\n"
        "  b{n}_masked = Add (b{n}_scores, b{n}_low)\n",
        {"all": np.array([1, 1, 6, 6])},
        ["float[B,1,1,6] m"],
    ),
    "of running sums": (
        "  b{n}_sum = CumSum (p, one)\n  b{n}_col = Unsqueeze (b{n}_sum, last)\n  b{n}_row = Unsqueeze (b{n}_sum, first)\n"
        "  b{n}_seen = LessOrEqual (b{n}_row, b{n}_col)\n" + REST,
        {**AXES, "one": np.array(1)},
        [POSITIONS],
    ),
    "two inputs": ("  b{n}_seen = And (a, m)\n" + REST, {}, ["bool[B,1,6,1] a", "bool[B,1,1,6] m"]),
    "an input switches it on": ("  b{n}_seen = Or (m, o)\n" + REST, {"m": CAUSAL}, ["bool[B,1,1,1] o"]),
}


@pytest.mark.parametrize("form", INPUT_DECIDES)
def test_what_an_input_decides_for_both_sides_is_refused_by_name(form: str) -> None:
    lines, arrays, inputs = INPUT_DECIDES[form]
    blocks, why = found(lines, arrays, *inputs)
    assert blocks == 0
    assert RUN_TIME in why
    assert "attention at Softmax node 'Softmax_" in why


PADDING = {
    "added": (ADD, {}, ["float[B,1,1,6] m"]),
    "a condition": (SHOW, {}, ["bool[B,1,1,6] m"]),
    "of words": (
        "  b{n}_row = Unsqueeze (p, first)\n  b{n}_part = Cast <to = 1> (b{n}_row)\n  b{n}_gone = Sub (one, b{n}_part)\n"
        "  b{n}_bias = Mul (b{n}_gone, low)\n  b{n}_masked = Add (b{n}_scores, b{n}_bias)\n",
        {**AXES, "one": np.float32(1)},
        [POSITIONS],
    ),
    "expanded": (
        "  b{n}_full = Expand (m, all)\n  b{n}_masked = Where (b{n}_full, b{n}_scores, low)\n",
        {"all": np.array([1, 1, 6, 6])},
        ["bool[B,1,1,6] m"],
    ),
    "with a band": ("  b{n}_seen = And (m, band)\n" + REST, {"band": BAND}, ["bool[B,1,1,6] m"]),
    "with a band, added": (
        "  b{n}_bias = Add (m, band)\n  b{n}_masked = Add (b{n}_scores, b{n}_bias)\n",
        {"band": bias(BAND)},
        ["float[B,1,1,6] m"],
    ),
    "with a band, a number": (
        COLUMN + "  b{n}_part = Mul (b{n}_row, band)\n  b{n}_seen = Cast <to = 9> (b{n}_part)\n" + REST,
        {**AXES, "band": BAND.astype(np.int64)},
        [POSITIONS],
    ),
    "on both sides": (
        COLUMN + "  b{n}_part = Mul (b{n}_row, b{n}_col)\n  b{n}_seen = Cast <to = 9> (b{n}_part)\n" + REST,
        AXES,
        [POSITIONS],
    ),
    "a learned bias by distance": (
        COLUMN + "  b{n}_away = Sub (b{n}_col, b{n}_row)\n  b{n}_learned = Gather (table, b{n}_away)\n"
        "  b{n}_masked = Add (b{n}_scores, b{n}_learned)\n",
        {**AXES, "table": np.linspace(-2, 2, 12, dtype=np.float32)},
        [POSITIONS],
    ),
}


@pytest.mark.parametrize("form", PADDING)
def test_padding_is_taken_in_any_form(form: str) -> None:
    lines, arrays, inputs = PADDING[form]
    assert found(lines, arrays, *inputs) == (2, "")


@pytest.mark.parametrize(
    ("lines", "arrays", "inputs"),
    [
        ("  b{n}_seen = And (m, later)\n" + REST, {"later": CAUSAL}, "bool[B,1,1,6] m"),
        (
            "  b{n}_bias = Add (m, later)\n  b{n}_masked = Add (b{n}_scores, b{n}_bias)\n",
            {"later": bias(CAUSAL)},
            "float[B,1,1,6] m",
        ),
    ],
)
def test_a_causal_mask_under_padding_is_causal(
    lines: str, arrays: dict[str, np.ndarray], inputs: str
) -> None:
    blocks, why = found(lines, arrays, inputs)
    assert blocks == 0
    assert "causal (token 0 sees 0 but not 1)" in why


def test_what_leaves_before_such_a_mask_is_refused_as_well() -> None:
    last = "  b{n}_masked = Add (b{n}_scores, m{n})\n"
    blocks, why = found(last, {"m0": bias(BAND), "m1": bias(CAUSAL)})
    assert blocks == 0
    assert (
        "Softmax_12': what leaves here comes to the attention at Softmax node 'Softmax_33', and its mask is causal"
        in why
    )
    blocks, why = found(last, {"m0": bias(CAUSAL), "m1": bias(BAND)})
    assert blocks == 1
    assert why.count("causal") == 1


@pytest.mark.parametrize(
    ("first", "second", "blocks"),
    [
        (APART, np.ones((N, N), bool), 2),
        (BAND, APART, 2),
        (APART, np.roll(APART, 1, (0, 1)), 2),
        (APART, APART, 0),
        (APART & ~np.eye(N, dtype=bool), BAND, 1),
        (FRAMES, BAND, 1),
    ],
)
def test_windows_are_taken_where_other_layers_join_them(
    first: np.ndarray, second: np.ndarray, blocks: int
) -> None:
    """Where each token sees itself and is seen by whom it sees."""
    lines = "  b{n}_masked = Add (b{n}_scores, m{n})\n"
    assert found(lines, {"m0": bias(first), "m1": bias(second)})[0] == blocks


def test_what_is_reached_counts_and_not_what_is_seen_at_once() -> None:
    ring = np.eye(5, k=1, dtype=bool)
    assert not connected(ring)
    ring[4, 0] = True
    assert connected(ring)
    assert connected(np.ones((1, 1), bool))
    assert connected(np.ones((0, 0), bool))


def test_positions_are_those_of_the_model() -> None:
    assert "token 2 sees 2 but not 3" in describe(CAUSAL, 2)
    assert "prefix of 5 tokens (token 2 sees 2 to 4 but not 5)" in describe(PREFIX, 2)
