"""Vision towers with what stands behind them in vision-language models, small and seeded, as ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.files import folder
from tokenrt.export.quiet import quiet

WIDTH, HEADS, BLOCKS, SIDE, CROPS = 32, 2, 3, 6, 3
"""Channels, heads and blocks of the towers, the side of their grid of patches of 4 x 4 pixels, and crops of a picture."""


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], HEADS, WIDTH // HEADS)
        q, k, v = (part.reshape(shape).transpose(-2, -3) for part in self.qkv(x).chunk(3, -1))
        found = functional.scaled_dot_product_attention(q, k, v)
        return self.out(found.transpose(-2, -3).reshape(x.shape))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Tower(nn.Module):
    """Pictures [B,3,24,24] -> what `tail` makes of the tokens of every block, the class token first where there is one."""

    def __init__(self, tail: Callable[[Tower, list[Tensor]], object], class_token: bool) -> None:
        super().__init__()
        self.tail, self.class_token = tail, class_token
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.place = nn.Parameter(torch.randn(1, SIDE**2 + class_token, WIDTH))
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, 40))
        self.wide = nn.Sequential(
            nn.LayerNorm(4 * WIDTH), nn.Linear(4 * WIDTH, 48), nn.GELU(), nn.Linear(48, 40)
        )
        self.deep = nn.ModuleList(nn.Linear(4 * WIDTH, 40) for _ in range(2))
        self.newline = nn.Parameter(torch.randn(40))

    def forward(self, pixel_values: Tensor) -> object:
        if pixel_values.ndim == 5:  # crops of each picture
            pixel_values = pixel_values.flatten(0, 1)
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        if self.class_token:
            x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)
        x, states = x + self.place, []
        for block in self.blocks:
            x = block(x)
            states.append(x)
        return self.tail(self, states)


def mlp(model: Tower, states: list[Tensor]) -> Tensor:
    """LLaVA: all but the class token through a projector."""
    return model.mlp(states[-1][:, 1:])


def pooled(model: Tower, states: list[Tensor]) -> Tensor:
    """Gemma 3: squares of 2 x 2 averaged, then the projector."""
    grid = states[-1].transpose(1, 2).reshape(-1, WIDTH, SIDE, SIDE)
    return model.mlp(functional.avg_pool2d(grid, 2).flatten(2).transpose(1, 2))


def shuffled(model: Tower, states: list[Tensor]) -> Tensor:
    """InternVL: squares of 2 x 2 side by side in the channels."""
    half = SIDE // 2
    grid = states[-1][:, 1:].reshape(-1, half, 2, half, 2, WIDTH).transpose(2, 3)
    return model.wide(grid.reshape(-1, half**2, 4 * WIDTH))


def stitched(model: Tower, states: list[Tensor]) -> Tensor:
    """LLaVA-NeXT: a thumbnail, then 2 x 2 crops as one picture with a newline behind every row; five pictures of a batch."""
    rows = model.mlp(states[-1][:, 1:])
    whole = rows[1:].reshape(2, 2, SIDE, SIDE, 40).transpose(1, 2).reshape(2 * SIDE, 2 * SIDE, 40)
    lines = torch.cat((whole, model.newline.expand(2 * SIDE, 1, 40)), 1)
    return torch.cat((rows[:1], lines.reshape(1, -1, 40)), 1)


def tiled(model: Tower, states: list[Tensor]) -> Tensor:
    """Crops of every picture of a batch, one behind the other."""
    return model.mlp(states[-1][:, 1:]).reshape(-1, CROPS * SIDE**2, 40)


def resized(model: Tower, states: list[Tensor]) -> Tensor:
    """LLaVA-OneVision: frames made smaller, each a picture of the batch."""
    grid = model.mlp(states[-1]).transpose(1, 2).reshape(-1, 40, SIDE, SIDE)
    small = functional.interpolate(grid, size=(4, 4), mode="bilinear")
    return small.flatten(2).transpose(1, 2)


def deepstack(model: Tower, states: list[Tensor]) -> tuple[Tensor, ...]:
    """Qwen3-VL: no batch, four tokens in a row become one, the same of earlier blocks."""
    return _stacked(model, [state[0].reshape(-1, 4 * WIDTH) for state in states])


def stacked(model: Tower, states: list[Tensor]) -> tuple[Tensor, ...]:
    """The same for pictures of a batch."""
    return _stacked(model, [state.reshape(-1, SIDE**2 // 4, 4 * WIDTH) for state in states])


def _stacked(model: Tower, rows: list[Tensor]) -> tuple[Tensor, ...]:
    return (model.wide(rows[-1]), *(layer(row) for layer, row in zip(model.deep, rows, strict=False)))


FORMS: Mapping[str, tuple[Callable[[Tower, list[Tensor]], object], bool, int]] = {
    "mlp": (mlp, True, 0),
    "pooled": (pooled, False, 0),
    "shuffled": (shuffled, True, 0),
    "stitched": (stitched, True, 5),
    "tiled": (tiled, True, 0),
    "resized": (resized, False, 4),
    "deepstack": (deepstack, False, 1),
    "stacked": (stacked, False, 0),
}
"""What stands behind the tower, whether it has a class token, and the batch it is made for; 0: any."""


DEEP = ("deepstack", "stacked")
"""Forms with outputs of earlier blocks."""


def pictures(form: str, batch: int = 2) -> dict[str, object]:
    """Seeded inputs."""
    generator = torch.Generator().manual_seed(3)
    return {"pixel_values": torch.randn(_shape(form, FORMS[form][2] or batch), generator=generator).numpy()}


def _shape(form: str, batch: int) -> tuple[int, ...]:
    return (batch, *([CROPS] if form == "tiled" else []), 3, 4 * SIDE, 4 * SIDE)


def tower(form: str, opset: int = 18) -> Path:
    """The file of a form, exported once."""
    tail, class_token, batch = FORMS[form]

    def made() -> nn.Module:
        torch.manual_seed(0)
        return Tower(tail, class_token)

    names = ["image_features", *(f"deepstack_{n}" for n in range(2 if form in DEEP else 0))]
    return exported(
        f"projector_{form}_{opset}", made, torch.randn(_shape(form, batch or 2)), names, opset, not batch
    )


def exported(
    name: str, make: Callable[[], nn.Module], example: Tensor, outputs: list[str], opset: int, free: bool
) -> Path:
    """The file of a module that takes `pixel_values`, exported once; free: its batch is."""
    path = folder() / f"{name}.onnx"
    if not path.exists():
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                make().eval(),
                (example,),
                input_names=["pixel_values"],
                output_names=outputs,
                opset_version=opset,
                dynamo=True,
                **({"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if free else {}),
            )
        assert program is not None
        temporary = path.with_suffix(".tmp")
        program.save(str(temporary))
        temporary.rename(path)
    return path
