"""A block of a transformer as a runtime without reductions computes it: what a reduction's cost is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from tokenrt.perf.cost.chip import Chip, constant

HALF = 2
"""Bytes of an element: blocks are counted in float16."""


@dataclass(frozen=True)
class Block:
    """A transformer block whose inner layer is four times as wide as its tokens; head: channels of each head."""

    tokens: int
    width: int
    head: int = 64

    @property
    def heads(self) -> int:
        return self.width // self.head

    def operations(self, batch: int) -> float:
        """A multiply-add is two: products with weights, 24 N C^2, and attention, 4 N^2 C."""
        n, c = self.tokens, self.width
        return batch * (24.0 * n * c * c + 4.0 * n * n * c)

    def bytes(self, batch: int) -> float:
        """Weights, 12 C^2, once, and what the layers read and write of the tokens, about 20 C a token."""
        return HALF * (12.0 * self.width**2 + 20.0 * batch * self.tokens * self.width)

    def seconds(self, chip: Chip, batch: int) -> float:
        return time(chip, self.operations(batch), self.bytes(batch), constant("layers_a_block"))


def time(chip: Chip, operations: float, moved: float, launches: float) -> float:
    """Seconds of layers that follow one another and use the matrix units."""
    return launches * chip.launch + max(operations / chip.tensor, moved / chip.bandwidth)


MODELS = {
    "ViT-S 197": Block(197, 384),
    "ViT-L 577": Block(577, 1024),
    "SigLIP 729": Block(729, 1152, 72),
    "ViT-B 4096": Block(4096, 768),
}
"""Blocks of models people deploy, by name and number of tokens: DeiT-S at 224, ViT-L/16 at 384, SigLIP so400m/14 at 378 and
SAM-B's global blocks at 1,024."""
