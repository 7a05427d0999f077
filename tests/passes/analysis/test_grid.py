"""The grid of the tokens: found where the graph shows it, never guessed, and given by hand where it hides it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from tests import zoo
from tests.passes.helpers import tiny
from tests.passes.helpers.running import Variant, dynamo, exported
from tokenrt.errors import PlanError
from tokenrt.passes.analysis.grid import grid
from tokenrt.passes.graph.shapes import infer
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.reduce import plan, reduce

NAMES = (
    "timm_vit_patch8",
    "timm_vit_registers",
    "timm_vit_avg_no_class",
    "hf_deit",
    "hf_dinov2_registers",
    "hf_siglip_pooled",
    "torchvision_vit",
    "hf_bert",
)


@pytest.mark.parametrize(
    "variant", [*exported(NAMES), dynamo("timm_vit", 23), dynamo("dense_dinov2", batch=1)]
)
def test_the_grid_of_every_kind_of_model(variant: Variant) -> None:
    entry = zoo.entry(variant.name)
    side = round((entry.tokens - entry.protected) ** 0.5)
    wanted = None if entry.inputs == "text" else (side, side)
    found = inspect(variant.path(), shape=variant.shape)
    assert found.grid == wanted
    assert found.as_dict()["grid"] == (list(wanted) if wanted else None)


def table(*shape: int) -> str:
    return "{" + ", ".join(["1"] * int(np.prod(shape))) + "}"


CONV = "c = Conv <kernel_shape = [2, 2], strides = [2, 2]> (picture, w)\n"
PICTURE = "float[B,1,4,6] picture, float[4,1,2,2] w"
FLAT = "int64[3] s = {0, 4, 6}"
ROWS = "int64[3] s = {0, 6, 4}"
TURN = "x = Transpose <perm = [0, 2, 1]> (f)"
FRAMES = "c = Conv <kernel_shape = [2, 2], strides = [2, 2]> (clip, w)\n"
# inputs, constants, statements that end in x, tokens on axis 1 behind so many protected ones, grid
WAYS = {
    "flattened": (PICTURE, FLAT, CONV + "f = Reshape (c, s)\n" + TURN, 0, (2, 3)),
    "channels-last": (
        PICTURE, ROWS, CONV + "n = Transpose <perm = [0, 2, 3, 1]> (c)\nx = Reshape (n, s)", 0, (2, 3),
    ),
    "columns-first": (
        PICTURE, ROWS, CONV + "n = Transpose <perm = [0, 3, 2, 1]> (c)\nx = Reshape (n, s)", 0, None,
    ),
    "no-convolution": (
        "float[B,2,3,7] cells", ROWS + f", float[7,4] m = {table(7, 4)}", "p = MatMul (cells, m)\nx = Reshape (p, s)", 0, (2, 3),
    ),
    "tables-norms-and-class-token": (
        PICTURE,
        FLAT + f", float[1,6,4] p = {table(6, 4)}, float[4] o = {table(4)}, int64[1] d = {{1}}",
        CONV + "f = Reshape (c, s)\nt = Transpose <perm = [0, 2, 1]> (f)\na = Add (p, t)\n"
        "l = LayerNormalization (a, o)\nk = ReduceMean <keepdims = 1> (l, d)\nx = Concat <axis = 1> (k, l)",
        1,
        (2, 3),
    ),
    "shuffled": (
        PICTURE, FLAT + ", int64[6] g = {1, 0, 2, 3, 4, 5}",
        CONV + "f = Reshape (c, s)\nt = Transpose <perm = [0, 2, 1]> (f)\nx = Gather <axis = 1> (t, g)", 0, None,
    ),
    "reversed": (
        PICTURE, FLAT + ", int64[1] b = {-1}, int64[1] e = {-9}, int64[1] a = {1}",
        CONV + "f = Reshape (c, s)\nt = Transpose <perm = [0, 2, 1]> (f)\nx = Slice (t, b, e, a, b)", 0, None,
    ),
    "volume": (
        "float[B,1,4,4,6] clip, float[4,1,2,2,2] w", "int64[3] s = {0, 4, 12}",
        "c = Conv <kernel_shape = [2, 2, 2], strides = [2, 2, 2]> (clip, w)\nf = Reshape (c, s)\n" + TURN, 0, (2, 2, 3),
    ),
    "one-frame": (
        "float[B,1,2,4,6] clip, float[4,1,2,2,2] w", FLAT,
        "c = Conv <kernel_shape = [2, 2, 2], strides = [2, 2, 2]> (clip, w)\nf = Reshape (c, s)\n" + TURN, 0, (2, 3),
    ),
    "words": ("int64[B,6] words", f"float[9,4] t = {table(9, 4)}", "x = Gather <axis = 0> (t, words)", 0, None),
    "a-line-is-no-grid": (
        "float[B,1,2,12] picture, float[4,1,2,2] w", FLAT, CONV + "f = Reshape (c, s)\n" + TURN, 0, None,
    ),
}  # fmt: skip


def laid_out(inputs: str, constants: str, body: str, protect: int) -> tuple[int, ...] | None:
    text = f'<ir_version: 10, opset_import: ["": 18]>\nmain ({inputs}) => (x) <{constants}> {{\n{body}\n}}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    shapes = infer(model)
    (entry,) = model.graph.outputs
    return grid(entry, 1, shapes.of(entry)[1], range(protect), shapes, shapes.of(model.graph.inputs[0])[0])


@pytest.mark.parametrize("name", WAYS)
def test_cells_are_followed_to_the_tokens(name: str) -> None:
    inputs, constants, body, protect, wanted = WAYS[name]
    assert laid_out(inputs, constants, body, protect) == wanted


@pytest.mark.parametrize("order", ["frames-first", "cells-first"])
def test_frames_may_be_folded_into_the_batch(order: str) -> None:
    """[B*T,C,h,w], a clip of two frames: in order only where all cells of a frame stand together."""
    turned = order == "cells-first"
    split = "f = Reshape (c, s)\nt = Transpose <perm = [0, 1, 3, 2]> (f)\n"
    split += "u = Transpose <perm = [0, 2, 1, 3]> (t)\n" if turned else "u = Identity (t)\n"
    inputs = "float[2,1,4,6] clip, float[4,1,2,2] w"
    body = FRAMES + split + "x = Reshape (u, r)"
    constants = "int64[4] s = {1, 2, 4, 6}, int64[3] r = {1, 12, 4}"
    text = f'<ir_version: 10, opset_import: ["": 18]>\nmain ({inputs}) => (x) <{constants}> {{\n{body}\n}}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    shapes = infer(model)
    found = grid(model.graph.outputs[0], 1, 12, (), shapes, 1)
    assert found == (None if turned else (2, 2, 3))


def test_a_grid_given_by_hand(tmp_path: Path) -> None:
    """The words of a plan file; the count must fit."""
    path = Variant("timm_vit").path()
    made = plan(path, method="tome", budget=Budget.remove(2), grid=(2, 8))
    assert made.grid == (2, 8)
    made.save(tmp_path / "plan.toml")
    assert "grid = [2, 8]" in (tmp_path / "plan.toml").read_text()
    assert reduce(path, plan=Plan.load(tmp_path / "plan.toml")).plan.grid == (2, 8)
    for wrong in ((4, 5), (16,), (-4, -4)):
        with pytest.raises(PlanError, match="unprotected tokens, 16"):
            plan(path, method="tome", budget=Budget.remove(2), grid=wrong)
    (tmp_path / "plan.toml").write_text((tmp_path / "plan.toml").read_text().replace("[2, 8]", '"2x8"'))
    with pytest.raises(PlanError, match="'grid' must be a list of whole numbers"):
        Plan.load(tmp_path / "plan.toml")


def test_on_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tokenrt.cli import app

    model = str(Variant("timm_vit").path())
    shown = CliRunner().invoke(app, ["inspect", model])
    assert "grid of the unprotected tokens: 4x4" in " ".join(shown.stdout.split())
    target = tmp_path / "plan.toml"
    line = ["plan", model, "--method", "tomesd", "--remove", "4", "-o", str(target)]
    assert CliRunner().invoke(app, [*line, "--grid", "2x8"]).exit_code == 0
    assert Plan.load(target).grid == (2, 8)
    assert {site.where for site in Plan.load(target).sites} == {"around-attention"}
    refused = CliRunner().invoke(app, [*line, "--grid", "2by8"])
    assert refused.exit_code == 2
    assert "expected HxW or FRAMESxHxW" in " ".join(refused.output.split())


def test_a_graph_without_one_says_so() -> None:
    found = inspect(ir.from_proto(tiny.model()))
    assert found.grid is None
