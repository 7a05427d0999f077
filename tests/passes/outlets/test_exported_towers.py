"""Vision parts as exported: reduced inside, they are torch's with the same tokens taken out; at the output, rows of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.export.helpers import vision_language as small
from tests.passes.helpers.running import session
from tokenrt.export.options import Options
from tokenrt.export.quiet import quiet
from tokenrt.export.sources.vision_language import vision
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.budget import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench.towers import towers
from tokenrt.perf.bench.towers.families import configuration
from tokenrt.perf.bench.towers.page import Cell, Towers

HERE = {"date": "", "processor": "", "processors": 2, "versions": {}}
INSIDE = [name for name in small.FILES if not name.startswith(("qwen", "llava_kept"))]
"""Towers of pictures; those of Qwen merge 2 x 2 tokens into a row."""

SHORT = {"llava": 1, "paligemma": 0}
"""Towers with a row for each token, and the tokens in front of these."""


def layers(module: nn.Module) -> nn.ModuleList:
    """The blocks of the tower."""
    (found,) = (
        each
        for name, each in module.named_modules()
        if isinstance(each, nn.ModuleList) and name.endswith(("layers", "layer")) and len(each) == 3
    )
    return found


def behind(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Let a block hand on what `change` makes of its tokens, also where the model keeps the outputs of its blocks."""
    forward: Any = layer.forward

    def changed(*given: Any, **named: Any) -> Any:
        found = forward(*given, **named)
        return (change(found[0]), *found[1:]) if isinstance(found, tuple) else change(found)

    layer.forward = changed  # type: ignore[method-assign]


def pruned(name: str, pixels: Tensor, kept: Tensor, back: int | None) -> Tensor:
    """What torch's module computes when the tokens `kept` [B,K] go on behind the first block.

    back: the block behind which the others are there again, as they left; None where they are not.
    """
    kind, options = small.FILES[name]
    torch.manual_seed(0)
    with quiet():
        made = vision(kind, configuration(kind), Options(random_weights=True, part="vision", **options))
    blocks, left = layers(made.module), list[Tensor]()

    def take(tokens: Tensor) -> Tensor:
        left.append(tokens)
        return tokens.gather(1, places(tokens))

    def restore(tokens: Tensor) -> Tensor:
        return left[0].scatter(1, places(tokens), tokens)

    def places(tokens: Tensor) -> Tensor:
        return kept[..., None].expand(-1, -1, tokens.shape[-1])

    behind(blocks[0], take)
    if back is not None:
        behind(blocks[back], restore)
    with torch.no_grad(), quiet():
        found: Tensor = made.module.eval()(pixels)["image_features"]
    return found


def compare(name: str, path: Path, short: bool) -> None:
    """Half of the tokens leave behind the first block, by the attention there."""
    how: dict[str, Any] = {"short": "all"} if short else {"source_map": True}
    made = reduce(path, method="topk", budget=Budget.keep(0.5, [0]), site="after-block", **how)
    running = session(made.model)
    shape = [size if isinstance(size, int) else 2 for size in running.get_inputs()[0].shape]
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    names = [value.name for value in running.get_outputs()]
    found = dict(
        zip(names, map(torch.from_numpy, running.run(names, {"pixel_values": pixels.numpy()})), strict=True)
    )
    if short:
        first = torch.arange(SHORT[name]).expand(len(found["kept_index"]), -1)
        kept, back = torch.cat((first, found["kept_index"] + SHORT[name]), 1), None
    else:
        kept = torch.stack([each.ge(0).nonzero()[:, 0] for each in found["token_source_map"]])
        back = len(inspect(path).blocks) - 1
    assert kept.shape[1] == made.plan.sites[0].tokens
    want = pruned(name, pixels, kept, back)
    got = found["image_features"]
    assert got.shape == want.shape
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5


@pytest.mark.parametrize("short", [False, True])
def test_tokens_that_leave_inside_are_those_torch_takes_out(short: bool) -> None:
    compare("llava", small.onnx("llava", 17, "torchscript"), short)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("name", INSIDE)
def test_they_are_in_every_tower(name: str, opset: int) -> None:
    for short in [False, True][: 1 + (name in SHORT)]:
        compare(name, small.onnx(name, opset), short)


def test_what_is_left_are_rows_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path))
    path = small.onnx("llava", 17, "torchscript")
    cells = [
        towers.cell("LLaVA", 17, path, method, 1 / 4, towers.METHODS[method], target=None)
        for method in ("divprune", "cdpruner", "visionzip")
    ]
    cells.append(towers.cell("LLaVA", 17, path, "hiprune", 1 / 4, {"middle": 8, "anchors": 1}, target=None))
    assert [str(cell) for cell in cells[:3]] == ["16 -> 4 yes"] * 3
    assert str(cells[3]).startswith("refused: block 8 does not exist")
    page = Towers(tuple(cells), "", "rtx-portable").page(HERE)
    assert "| LLaVA | 17 | 16 | yes | yes | yes | refused (1) |" in page
    assert "1. refused: block 8 does not exist" in page


def test_what_does_not_hold_is_told() -> None:
    sound = Cell("a", 20, "m", 1 / 2, 16, 8, 0.0, "yes")
    wrong = [
        Cell("a", 20, "m", 1 / 4, 16, 4, 1e-3, "yes"),
        Cell("a", 20, "m", 1 / 9, 16, 2, 0.0, "outputs are not finite", "the builder says no"),
    ]
    found = Towers((sound, *wrong), "", "rtx-portable")
    assert not found.ok
    page = found.page(HERE)
    assert "| 25%, 11%: no (1, 2, 3) |" in page
    assert "1. rows differ by 1.0e-03\n2. outputs are not finite\n3. the builder says no" in page


@pytest.mark.slow
@pytest.mark.parametrize("opset", towers.OPSETS)
@pytest.mark.parametrize("name", towers.TOWERS)
def test_every_method_through_every_tower(name: str, opset: int) -> None:
    found = Towers(tuple(towers.through(name, opset, towers.TOWERS[name].export(opset))), "", towers.TARGET)
    assert [str(cell) for cell in found.cells if cell.wrong] == []
    taken = {cell.method for cell in found.cells if not cell.refused}
    assert len(taken) >= 6
