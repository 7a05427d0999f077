"""Tokens that leave a vision tower in whole merge units: Qwen's towers equal torch models that drop or merge the same units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.export.helpers import vision_language as small
from tests.passes.helpers import qwen, tiny
from tests.passes.helpers.projectors import pictures, tower
from tests.passes.helpers.running import session
from tokenrt.errors import NothingToDoError, PlanError, TokenrtError, UnsupportedError
from tokenrt.passes import methods
from tokenrt.passes.graph.canonicalize import Canonicalize
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.reduce import plan, reduce
from tokenrt.passes.report import Reduced

TOWERS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
CHOICES = {"topk": qwen.most_received, "evit": qwen.fused, "tome": qwen.matched}
"""What torch chooses by itself; of other methods it takes the rows that the model tells."""


def equals(path: Path, name: str, method: str, *sites: tuple[int, int]) -> None:
    """A tower reduced at these blocks to so many tokens, against torch."""
    short = "image_features" if method == "tome" else "all"
    made = reduce(
        path, method=method, budget=Budget.tokens([n for _, n in sites], [b for b, _ in sites]), short=short
    )
    pixels, ready = qwen.patches(name), session(made.model)
    names = [value.name for value in ready.get_outputs()]
    found = dict(zip(names, ready.run(None, {"pixel_values": pixels.numpy()}), strict=True))
    told = {} if method in CHOICES else {sites[0][0]: qwen.told(name, found["kept_index"][0])}
    known = told or {block: CHOICES[method](count) for block, count in sites}
    wanted, rows = qwen.run(name, pixels, known)
    keep = sites[-1][1]
    if method == "tome":
        where = found["token_source_map"][0][rows.numpy()]
        assert sorted(where) == [*range(keep // 4)]
        found["image_features"] = found["image_features"][where]
    else:
        assert found["kept_index"][0].tolist() == rows.tolist()
    every = (want for want in wanted[: 1 if method == "tome" else None])
    for output, want in zip(names, every, strict=False):
        assert found[output].shape == want.shape == (keep // 4, 48)
        assert np.abs(found[output] - want.numpy()).max() <= 1e-5 * np.abs(want.numpy()).max()


def test_towers_of_torch_are_those_of_transformers() -> None:
    for name in TOWERS:
        pixels = qwen.patches(name)
        ready = session(small.onnx(name, 17, "torchscript"))
        made, _ = qwen.run(name, pixels, {})
        for got, want in zip(ready.run(None, {"pixel_values": pixels.numpy()}), made, strict=True):
            np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "method", "sites"),
    [
        ("qwen2_vl", "topk", [(0, 16)]),
        ("qwen2_vl", "tome", [(1, 40)]),
        ("qwen2_vl_video", "topk", [(0, 16)]),
        ("qwen2_5_vl", "topk", [(0, 40), (1, 16)]),
        ("qwen2_5_vl", "tome", [(0, 36)]),
        ("qwen3_vl", "evit", [(0, 40), (1, 32)]),
        ("qwen3_vl", "divprune", [(0, 8)]),
    ],
)
def test_units_leave_as_in_torch(name: str, method: str, sites: list[tuple[int, int]]) -> None:
    equals(small.onnx(name, 17, "torchscript"), name, method, *sites)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [32, 16, 8])
@pytest.mark.parametrize("method", ["topk", "evit", "tome", "divprune", "random", "slice"])
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("name", TOWERS)
def test_towers(name: str, opset: int, method: str, keep: int) -> None:
    """At 50, 25 and 11 % (two of sixteen units)."""
    if method == "tome" and keep < 32:
        pytest.skip("tome leaves half of the tokens at the least")
    for block in (0, 1):
        equals(small.onnx(name, opset), name, method, (block, keep))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_inspect_offers_what_reduce_takes(name: str) -> None:
    """Slice leaves whole windows empty; no row is then without a key."""
    path = small.onnx(name, 17, "torchscript")
    found = inspect(path)
    assert [block.sites[-2:] for block in found.blocks[:2]] == [("after-attention", "after-block")] * 2
    assert {outlet.unit for outlet in found.outlets} == {4}
    assert "--short image_features lets tokens leave inside, in whole units of 4" in str(found.outlets[0])
    made = reduce(path, method="slice", budget=Budget.tokens([4], [0]), short="image_features")
    values = session(made.model).run(None, {"pixel_values": qwen.patches(name).numpy()})
    assert all(np.isfinite(value).all() for value in values)


def test_windows_cut_apart_are_refused_by_that_name() -> None:
    attention = "".join(f"  b{{n}}_{x} = MatMul (b{{n}}_in, w{x})\n" for x in "qkv")
    attention += "".join(f"  b{{n}}_{x}0, b{{n}}_{x}1 = Split <axis = 1> (b{{n}}_{x})\n" for x in "qkv")
    for part in "01":
        attention += f"""
  b{{n}}_t{part} = Transpose <perm = [0, 2, 1]> (b{{n}}_k{part})
  b{{n}}_s{part} = MatMul (b{{n}}_q{part}, b{{n}}_t{part})
  b{{n}}_w{part} = Softmax <axis = -1> (b{{n}}_s{part})
  b{{n}}_m{part} = MatMul (b{{n}}_w{part}, b{{n}}_v{part})
"""
    attention += "  b{n}_result = Concat <axis = 1> (b{n}_m0, b{n}_m1)\n"
    with pytest.raises(
        NothingToDoError, match=r"one of 2 windows of tokens, which Split node '\S*' cuts apart"
    ):
        reduce(
            ir.from_proto(tiny.model(tiny.MEAN, attention=attention, opset=17)),
            method="topk",
            budget=Budget.keep(0.5, [0]),
        )


def test_what_stays_is_whole_units() -> None:
    path = tower("deepstack")
    for budget, left in ((Budget.keep(0.3, [0]), 12), (Budget.remove(5, [0]), 32), (Budget.flops(0.7), None)):
        made = plan(path, method="topk", budget=budget, short="all", options={"score": "received"})
        assert made.unit == 4
        assert any("whole merge units of 4" in note for note in made.notes)
        assert all(site.tokens % 4 == 0 for site in made.sites)
        assert left in (None, made.sites[0].tokens)
    multiple = plan(path, method="topk", budget=Budget.keep(0.5, [0]).rounded(8), short="all")
    assert multiple.sites[0].tokens == 24
    assert plan(path, method="topk", budget=Budget.keep(0.3, [0])).sites[0].tokens == 11
    assert Plan.parse(multiple.to_toml(), "plan.toml").unit == 4


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (
            {"budget": Budget.tokens([18], [0])},
            r"18 of 36 tokens cannot stay: .* whole merge units of 4.*; 20 is the nearest",
        ),
        ({"budget": Budget.remove(1)}, r"removes no token at any block in whole merge units of 4"),
        (
            {"protect": "5"},
            r"of tokens 4 to 7, which become one row, token 5 never leaves and token 4 may; .* --protect 4:8",
        ),
        ({"span": "0:30"}, r"of tokens 28 to 31, which become one row, token 30 never leaves"),
        ({"method": "dynamicvit"}, r"dynamicvit was trained on single tokens"),
        ({"grid": (6, 6)}, r"grid 6x6 has 36 cells; .* 9"),
    ],
)
def test_refusals_say_why(more: dict[str, object], why: str) -> None:
    with pytest.raises((PlanError, NothingToDoError), match=why):
        plan(
            tower("deepstack"), **{"method": "topk", "budget": Budget.keep(0.5, [0]), "short": "all", **more}
        )  # type: ignore[arg-type]


def test_a_representative_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="one token stand for all that left"):
        reduce(
            tower("deepstack"),
            method="evovit",
            budget=Budget.keep(0.5, [0]),
            short="all",
            options={"variant": "paper"},
        )


def test_merged_rows_of_earlier_blocks_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"'deepstack_0' is made before tome merges tokens"):
        reduce(tower("deepstack"), method="tome", budget=Budget.keep(0.6, [1]), short="all")


def outputs(made: Reduced) -> dict[str, np.ndarray]:
    ready = session(made.model)
    names = [value.name for value in ready.get_outputs()]
    return dict(zip(names, ready.run(None, pictures("deepstack")), strict=True))


def test_protected_units_stand_in_front_and_are_told() -> None:
    made = reduce(
        tower("deepstack"),
        method="topk",
        budget=Budget.keep(0.3, [0, 1]),
        short="all",
        protect="8:12",
        options={"score": "received"},
    )
    found = outputs(made)
    kept = found["kept_index"][0]
    assert kept[0] == 2
    assert kept[1:].tolist() == sorted(kept[1:])
    assert {name: value.shape for name, value in found.items() if name != "kept_index"} == {
        name: (len(kept), 40) for name in ("image_features", "deepstack_0", "deepstack_1")
    }


def test_outputs_of_earlier_blocks_follow_the_last_choice() -> None:
    path = tower("deepstack")
    whole = outputs(reduce(path, method="topk", budget=Budget.tokens([20], [0]), short="all"))
    later = outputs(reduce(path, method="topk", budget=Budget.tokens([20, 8], [0, 2]), short="all"))
    where = [whole["kept_index"][0].tolist().index(row) for row in later["kept_index"][0]]
    for name in ("deepstack_0", "deepstack_1"):
        np.testing.assert_allclose(later[name], whole[name][where], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "short"), [("topk", "all"), ("tome", "image_features"), ("random", "all")]
)
def test_pictures_of_a_batch_choose_for_themselves(method: str, short: str) -> None:
    pixels = pictures("stacked")["pixel_values"]
    assert isinstance(pixels, np.ndarray)
    one, many = (
        session(reduce(tower(form), method=method, budget=Budget.tokens([20], [1]), short=short).model)
        for form in ("deepstack", "stacked")
    )
    found = many.run(None, {"pixel_values": pixels})
    for place in range(len(pixels)):
        alone = one.run(None, {"pixel_values": pixels[place : place + 1]})
        for got, want in zip(found, alone, strict=True):
            np.testing.assert_allclose(got[place].squeeze(), want.squeeze(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.at_blocks())
def test_every_method_takes_units_or_says_why(method: str) -> None:
    short = "image_features" if methods.get(method).merges else "all"
    try:
        made = reduce(
            tower("deepstack"), method=method, budget=Budget.tokens([20], [0]), short=short, grid=(3, 3)
        )
    except TokenrtError as refused:
        pytest.skip(f"{method}: {str(refused).splitlines()[0]}")
    found = outputs(made)
    told = found.get("kept_index", found.get("token_source_map"))
    assert told is not None
    assert told.max() < 9
    assert all(np.isfinite(value).all() for value in found.values())
    assert found["deepstack_0" if short == "all" else "image_features"].shape == (5, 40)


def test_without_short_outputs_all_tokens_come_back() -> None:
    made = reduce(tower("deepstack"), method="topk", budget=Budget.keep(0.5, [0]))
    assert made.plan.unit == 1
    assert [list(value.shape or ()) for value in made.model.graph.outputs] == [[9, 40]] * 3


def test_a_permutation_is_one_gather() -> None:
    model = Canonicalize()(ir.load(small.onnx("qwen2_5_vl", 23)))
    last = model.graph.outputs[0].producer()
    assert last is not None
    assert (last.op_type, last.attributes.get_int("axis")) == ("Gather", 0)
    index = last.inputs[1]
    assert index is not None
    assert index.const_value is not None
    assert sorted(index.const_value.numpy().tolist()) == [*range(16)]
