"""MQT: read the picture with the first K of a resampler's learned queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, layers, pooling, steps
from tokenrt.passes.methods.parts.weights import Trained

CUBIC = -0.75
"""The coefficient of torch's bicubic interpolation."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class MQT(Trained):
    """The resampler of MQT-LLaVA with K of its Q queries: [B,N,C] features to [B,K,E] tokens.

    Keys hold positions only, LN(table) with the table resized to the grid, and queries are constants too, LN(query + table):
    so attention is a constant, and y = A LN(x) W. The outputs are the first K of those that all Q queries give, to the bit of
    the arithmetic. So a model that has a resampler as its projector needs no weights: at its output (`--site output`) the
    constant of its queries keeps the first K, with the rows of every table beside them; queries that read one another are
    refused. With weights, and on arrays, this is the whole resampler. Behind protected tokens E must be C. Padding is read
    like any token, as the release has none.
    Options: heads (0: C / 128, as published); weights: the resampler's state, names as in the checkpoint.
    """

    name: ClassVar[str] = "mqt"
    summary: ClassVar[str] = "read the picture with the first of a resampler's learned queries"
    paper: ClassVar[str] = (
        "Hu et al., Matryoshka Query Transformer for Large Vision-Language Models, NeurIPS 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    home: ClassVar[Home] = "features"
    own_queries: ClassVar[bool] = True
    systems: ClassVar[tuple[str, ...]] = ("MQT",)
    needs: ClassVar[Mapping[str, str]] = {
        "query": "L,C",
        "pos_embed": "L,C",
        "proj": "C,E",
        "attn.in_proj_weight": "3*C,C",
        "attn.in_proj_bias": "3*C",
        "attn.out_proj.weight": "C,C",
        "attn.out_proj.bias": "C",
        **{f"ln_{part}.{kind}": "C" for part in "qkv" for kind in ("weight", "bias")},
    }

    heads: int = 0

    def __post_init__(self) -> None:
        steps.at_least(self.name, "heads", self.heads, 0)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        frames, rows, columns = pooling.grids(self, site)
        if frames != 1:
            raise steps.no_grid(self.name, site)
        kept = site.keep - site.protect
        attention = self._attention(site, kept, rows, columns)
        heads, _, tokens = attention.shape
        width = self.tensor("query", site).shape[1]
        inner, bias = (self.tensor(f"attn.in_proj_{kind}", site)[2 * width :] for kind in ("weight", "bias"))
        scale, shift = (self.tensor(f"ln_v.{kind}", site) for kind in ("weight", "bias"))
        normed = layers.layer_norm(op, clusters.plain(op, taps, site), scale, shift, 1e-6)
        values = layers.linear(op, normed, inner, bias)
        split = op("Reshape", values, np.array([0, tokens, heads, width // heads]))
        read = op("MatMul", attention.astype(np.float32), op("Transpose", split, perm=[0, 2, 1, 3]))
        joined = op("Reshape", op("Transpose", read, perm=[0, 2, 1, 3]), np.array([0, kept, width]))
        outer = self.tensor("attn.out_proj.weight", site)
        out = layers.linear(op, joined, outer, self.tensor("attn.out_proj.bias", site))
        made = op("MatMul", out, self.tensor("proj", site))
        return self._placed(op, taps, site, made, attention.mean(axis=0))

    def _placed(self, op: Ops, taps: Taps, site: Site, made: object, attention: Doubles) -> Reduction:
        """Each output stands at the token it reads most, and each token belongs to the output that reads it most."""
        if site.protect and self.tensor("proj", site).shape[1] != site.channels:
            raise MethodError(
                f"method {self.name!r} changes the channels, so no protected token can stand in front"
            )
        head = np.arange(site.protect)
        position = np.concatenate([head, site.protect + attention.argmax(axis=1)])
        assign = np.concatenate([head, site.protect + attention.argmax(axis=0)])
        tokens = clusters.ahead(op, taps, site, op("CastLike", made, taps.tokens))
        return Reduction(tokens, None, op.constant(position[None]), op.constant(assign[None]))

    def _attention(self, site: Site, kept: int, rows: int, columns: int) -> Doubles:
        """What each of the first `kept` queries reads of each token: [H,K,T]. Raises: MethodError, PlanError."""
        query, table = (self.tensor(name, site).astype(np.float64) for name in ("query", "pos_embed"))
        count, width = query.shape
        self.check("pos_embed", self.tensor("pos_embed", site), query.shape)
        if kept > count:
            raise PlanError(
                f"method {self.name!r}: its weights have {count} queries, so {kept} tokens cannot stay"
            )
        side, heads = isqrt(count), self.heads or max(width // 128, 1)
        if side * side != count or width % heads or (site.channels or width) != width:
            raise MethodError(
                f"method {self.name!r}: its weights have {count} queries of {width} channels; expected a square number of them, "
                f"channels in {heads} heads (--set heads=H), and tokens of {width} channels, got {site.channels}"
            )
        down, across = resized(side, rows), resized(side, columns)
        grid = np.einsum("ai,bj,ijc->abc", down, across, table.reshape(side, side, width)).reshape(-1, width)
        weight, bias = (
            self.tensor(f"attn.in_proj_{kind}", site).astype(np.float64) for kind in ("weight", "bias")
        )
        ends = [self._normed(site, "ln_q", query[:kept] + table[:kept]), self._normed(site, "ln_k", grid)]
        queries, keys = (
            (part @ weight[start : start + width].T + bias[start : start + width])
            .reshape(len(part), heads, -1)
            .transpose(1, 0, 2)
            for part, start in zip(ends, (0, width), strict=True)
        )
        logits = queries @ keys.transpose(0, 2, 1) * (width // heads) ** -0.5
        share = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(share / share.sum(axis=-1, keepdims=True))

    def _normed(self, site: Site, name: str, rows: Doubles) -> Doubles:
        centred = rows - rows.mean(axis=-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
        return np.asarray(unit * self.tensor(f"{name}.weight", site) + self.tensor(f"{name}.bias", site))


def resized(source: int, target: int) -> Doubles:
    """The matrix [target,source] of bicubic interpolation along one axis, corners not aligned, as in torch."""
    matrix = np.zeros((target, source))
    for row in range(target):
        place = (row + 0.5) * source / target - 0.5
        first = int(np.floor(place))
        for step in range(-1, 3):
            away = abs(first + step - place)
            near = (CUBIC + 2) * away**3 - (CUBIC + 3) * away**2 + 1
            far = CUBIC * (away**3 - 5 * away**2 + 8 * away - 4)
            matrix[row, min(max(first + step, 0), source - 1)] += near if away <= 1 else far
    return matrix
