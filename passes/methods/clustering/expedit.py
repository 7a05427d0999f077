"""Expedit: cluster the grid of tokens to a smaller grid, and restore each position from the nearest clusters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, steps
from tokenrt.passes.ops.contract import Array

SAM, SEGMENTER = (0.01, 5, 0.01, 20), (1.0, 7, 0.05, 3)
VARIANTS = {"sam": SAM, "segmenter": SEGMENTER, "reference": SAM, "paper": SAM}
"""Temperature, window, temperature and neighbours of the restoration in each release; reference is the first."""

NORMS = ("auto", "l2", "l1")


@dataclass(frozen=True)
class Expedit(Method):
    """Soft K-means on the H x W grid of tokens, in which a token may only join clusters near its own cell of h x w.

    Centres start as the means of the h x w cells. A round gives each token shares among the clusters of its window,
    softmax of -temperature times squared distance, and makes each centre the mean of all tokens by share. The centres
    are the outputs, row by row; a position is restored as the sum of the `recon_k` clusters nearest to its token (more
    if they tie), weighted by exp(-recon_temperature times squared distance), the weights of length 1 in the given
    norm. It needs the grid, so it can only be the first reduction, and a count that makes a grid. An output stands at
    its strongest token; sizes add up the shares. Numbers that are not finite count as 0.
    Options: rows h of the small grid (0: the shape nearest to that of the tokens); iterations; variant, whose settings
    serve where these are 0: temperature, window (in cells, across), recon_temperature, recon_k; norm: l2, as
    released, l1, so that weights add up to 1, or auto, l1 for variant=paper.
    """

    name: ClassVar[str] = "expedit"
    summary: ClassVar[str] = "cluster the token grid to a smaller one, restore positions from near clusters"
    paper: ClassVar[str] = (
        "Liang et al., Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning, NeurIPS 2022"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Expedit",)
    deviations: ClassVar[str] = (
        "reference (sam, or with its settings segmenter) restores with weights of length 1, as the releases do; paper "
        "with weights that add up to 1"
    )

    variant: str = "sam"
    rows: int = 0
    iterations: int = 5
    temperature: float = 0.0
    window: int = 0
    recon_temperature: float = 0.0
    recon_k: int = 0
    norm: str = "auto"

    def __post_init__(self) -> None:
        steps.choice(self.name, "variant", self.variant, tuple(VARIANTS))
        steps.choice(self.name, "norm", self.norm, NORMS)
        for option in ("rows", "temperature", "window", "recon_temperature", "recon_k"):
            if not getattr(self, option) >= 0:
                raise MethodError(
                    f"option {option}={getattr(self, option)} of method {self.name!r}: expected 0 or more"
                )
        steps.at_least(self.name, "iterations", self.iterations, 1)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        grid, small = self._grids(site)
        count, outputs = site.tokens - site.protect, clusters.outputs(site)
        given = (self.temperature, self.window, self.recon_temperature, self.recon_k)
        temperature, window, recon_temperature, recon_k = (
            own or usual for own, usual in zip(given, VARIANTS[self.variant], strict=True)
        )
        points, mean = clusters.points(op, clusters.plain(op, taps, site), count)
        allowed = op.constant(_window(grid, small, int(window))[None])
        center = op("MatMul", op.constant(_cells(grid, small)), points)
        for _ in range(self.iterations):
            logits = op("Mul", clusters.distances_between(op, center, points), -temperature)
            shares = op("Softmax", op("Where", allowed, logits, steps.LOWEST), axis=1)
            total = op("ReduceSum", shares, clusters.LAST, keepdims=1)
            moved = op("Div", op("MatMul", shares, points), op("Max", total, 1e-30))
            center = op("Where", op("Greater", total, 0.0), moved, center)

        apart = op("Transpose", clusters.distances_between(op, center, points), perm=[0, 2, 1])
        affinity = self._affinity(op, apart, recon_temperature, min(int(recon_k), outputs))
        mixture = clusters.mixed(op, taps, site, shares, op("Add", center, mean))
        size = steps.sizes(op, taps, site)
        mass = op("MatMul", shares, steps.free(op, size, site))
        return Reduction(
            mixture.tokens,
            clusters.after_protected(op, size, mass, site),
            mixture.position,
            clusters.whole(op, taps, site, op("ArgMin", apart, axis=2, keepdims=0)),
            affinity=clusters.with_protected(op, affinity, site),
        )

    def _affinity(self, op: Ops, apart: Value, temperature: float, count: int) -> Value:
        """Return the weights [B,T,M] by which positions are restored from squared distances [B,T,M].

        Distances count from the nearest cluster on: the norm takes that factor out again, and nothing underflows.
        """
        nearest = op("ReduceMin", apart, axes=[-1], keepdims=1)
        weight = op("Exp", op("Mul", op("Sub", apart, nearest), -temperature))
        closest, _ = op("TopK", apart, np.array([count]), axis=2, largest=0)
        limit = op("ReduceMax", closest, axes=[-1], keepdims=1)
        weight = op("Where", op("Greater", apart, limit), 0.0, weight)
        if self.norm == "l1" or (self.norm == "auto" and self.variant == "paper"):
            return op("Div", weight, op("ReduceSum", weight, clusters.LAST, keepdims=1))
        length = op("Sqrt", op("ReduceSum", op("Mul", weight, weight), clusters.LAST, keepdims=1))
        return op("Div", weight, length)

    def _grids(self, site: Site) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (H, W) and (h, w). Raises: MethodError when the tokens or the outputs form no grid."""
        if site.grid is None or len(site.grid) != 2:
            raise steps.no_grid(self.name, site, "reduce once, before any other reduction")
        grid, outputs = (site.grid[0], site.grid[1]), clusters.outputs(site)
        if small := _shape(grid, outputs, self.rows):
            return grid, small
        counts = range(1, site.tokens - site.protect)
        fitting = sorted((abs(count - outputs), count) for count in counts if _shape(grid, count, self.rows))
        nearest = ", ".join(
            str(count + site.protect) for _, count in sorted(fitting[:4], key=lambda item: item[1])
        )
        raise MethodError(
            f"method {self.name!r} cannot make a grid of {outputs} clusters out of {grid[0]} x {grid[1]} tokens"
            f"{f' in {self.rows} rows' if self.rows else ''}; token counts that fit (--tokens): {nearest}"
        )


def _shape(grid: tuple[int, int], outputs: int, rows: int) -> tuple[int, int] | None:
    """Return the (h, w) with h w = outputs that fits in the grid and comes closest to its shape; None if none does."""
    heights = [rows] if rows else range(1, grid[0] + 1)
    shapes = [(height, outputs // height) for height in heights if outputs % height == 0]
    fitting = [shape for shape in shapes if shape[0] <= grid[0] and shape[1] <= grid[1]]
    wanted = math.log(grid[0] / grid[1])
    return min(fitting, key=lambda shape: abs(math.log(shape[0] / shape[1]) - wanted), default=None)


def _cells(grid: tuple[int, int], small: tuple[int, int]) -> Array:
    """Return the matrix [h*w,H*W] that takes means of cells, which overlap where the sizes do not divide."""
    sides = []
    for whole, parts in zip(grid, small, strict=True):
        side = np.zeros((parts, whole))
        for part in range(parts):
            first, end = part * whole // parts, -((part + 1) * whole // -parts)
            side[part, first:end] = 1 / (end - first)
        sides.append(side)
    return np.kron(*sides)


def _window(grid: tuple[int, int], small: tuple[int, int], window: int) -> Array:
    """Return which clusters each token may join: [h*w,H*W] bool."""
    near = []
    for whole, parts in zip(grid, small, strict=True):
        own = np.arange(whole) * parts // whole
        near.append(np.abs(np.arange(parts)[:, None] - own[None]) <= window // 2)
    return np.kron(*near)
