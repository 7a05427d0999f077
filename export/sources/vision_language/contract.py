"""What a family of vision-language models says about its vision part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from tokenrt.export.options import Options

FEATURES = "image_features"
"""Name of the output the language model reads in place of its picture tokens."""

Read = Callable[["Tensor"], dict[str, "Tensor"]]


@dataclass(frozen=True)
class Vision:
    """The vision part of one model at one size of picture.

    `read` takes pixel_values, [B, *shape] or, where not `batched`, [*shape], and gives the outputs by name.
    """

    read: Read
    shape: tuple[int, ...]
    batched: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """How the vision part of a model type is called.

    `open` gets the model without its language model. `sized`: `image_size` is the side the tower is made for;
    `takes`: the further options it has a use for.
    """

    open: Callable[[Any, Options], Vision]
    sized: bool = True
    takes: frozenset[str] = frozenset()


class Part(nn.Module):
    """A module whose forward is `read`, with the weights of the model it reads."""

    def __init__(self, model: nn.Module, read: Read) -> None:
        super().__init__()
        self.model, self.read = model, read

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        return self.read(pixel_values)


def side(size: Any) -> int:
    """The side of a square given as a number or as (height, width)."""
    return int(size[0] if isinstance(size, list | tuple) else size)


def raster(rows: int, unit: int = 1) -> str:
    """The note on features that lie row by row, each made of a square of patches."""
    each = "a patch" if unit == 1 else f"{unit} x {unit} patches"
    return f"order: {rows} x {rows} rows of {FEATURES} in raster order, each of {each}"
