"""CTS: squares of four tokens of one class share one token, chosen by a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.passes.methods.contract import Evidence, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, steps, windows
from tokenrt.passes.methods.parts.weights import Trained

SQUARE = 2
SAVED = SQUARE * SQUARE - 1
"""Tokens saved by each square that shares one."""


@dataclass(frozen=True)
class CTS(Trained):
    """Replace the S squares of 2 x 2 tokens with the highest policy score by the mean of their tokens.

    The policy is a linear map of a square's tokens, row by row one behind the other (a convolution of size and
    stride 2), to two logits; the score is the softmax of the second, ranked by their difference. Each square
    saves three tokens, K = N - 3S. Output order: protected, unshared tokens ascending, shared squares
    ascending. Restoring copies a shared token to its four places.
    It differs from the paper, which works before the network: there the policy sees pixels and the shared token
    embeds the picture of its square at half resolution, here both see embedded tokens, and the mean is that
    of four embeddings with their positions. Use it at the first site, where the grid is whole.
    Tensors: policy [2,4*C], policy_bias [2].
    """

    name: ClassVar[str] = "cts"
    summary: ClassVar[str] = "share one token among the 2 x 2 squares that a policy expects to hold one class"
    paper: ClassVar[str] = (
        "Lu et al., Content-aware Token Sharing for Efficient Semantic Segmentation with ViTs, CVPR 2023"
    )
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("CTS",)
    needs: ClassVar[Mapping[str, str]] = {"policy": "2,4*C", "policy_bias": "2"}
    deviations: ClassVar[str] = (
        "policy and sharing act on embedded tokens inside the network, in the paper on pixels before it"
    )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        table = windows.windows(self, site, SQUARE, SQUARE)
        share, rest = divmod(site.removed, SAVED)
        if rest or share > len(table):
            raise windows.misfit(self, table, site)
        chosen = op("TokenSelect", self._score(op, taps, site, table), keep=share, protect=0, order=0)
        pairs = windows.shared(op, taps.tokens, table, chosen, share, site, place=0, behind=site.keep - share)
        return bipartite.merged(op, taps, site, pairs)

    def fewest(self, tokens: int, protect: int) -> int:
        return tokens - (tokens - protect) // (SAVED + 1) * SAVED

    def _score(self, op: Ops, taps: Taps, site: Site, table: windows.Positions) -> Value:
        """Difference of the two logits [B,W] of every square."""
        policy, bias = self.tensor("policy", site), self.tensor("policy_bias", site)
        self.check("policy_bias", bias, (2,))
        width = table.shape[1] * site.channels if site.channels else policy.shape[1]
        self.check("policy", policy, (2, width))
        members = op("Gather", steps.float_tokens(op, taps), table.ravel(), axis=1)
        squares = op("Reshape", members, np.array([0, len(table), policy.shape[1]]))
        lead = op("MatMul", squares, np.ascontiguousarray((policy[1] - policy[0])[:, None]))
        return op("Add", op("Squeeze", lead, steps.LAST), bias[1] - bias[0])
