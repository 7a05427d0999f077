"""GeoPrune: keep the tokens that the strongest common directions leave most of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Home, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import directions, rows, scores, steps
from tokenrt.passes.methods.parts.weights import Trained


@dataclass(frozen=True)
class GeoPrune(Trained):
    """Keep the K tokens that are longest once the S strongest singular directions of all tokens are taken out.

    A direction v is found by power iteration, u = Xv / |Xv|, v = X'u, and X - u v' goes on. X is what enters the tap block,
    not centred. Kept tokens ascend. Protected tokens and padding take no part; padding leaves first.
    Options: directions S; sweeps of the power iteration; seed of the start vectors, which the release draws anew in every
    process (here they are random mixtures of the tokens); weights: optional, start [S,C], the start vectors themselves.
    """

    name: ClassVar[str] = "geoprune"
    summary: ClassVar[str] = "keep the tokens with the longest rest behind the strongest singular directions"
    paper: ClassVar[str] = "residual L2 scores (GeoPrune), a branch of vLLM"
    reads: ClassVar[tuple[str, ...]] = ("stream",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("GeoPrune",)
    drops: ClassVar[bool] = True
    home: ClassVar[Home] = "output"
    ascending: ClassVar[bool] = True
    engines: ClassVar[Mapping[str, str]] = {"vLLM": "--image-pruning-rate, num_singular_values"}
    optional: ClassVar[Mapping[str, str]] = {"start": "S,C"}

    directions: int = 1
    sweeps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        steps.at_least(self.name, "directions", self.directions, 1)
        steps.at_least(self.name, "sweeps", self.sweeps, 1)

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        left = rows.sound(op, taps, site, taps.stream())
        for right in self._starts(op, left, site):
            turned = op("Transpose", left, perm=[0, 2, 1])
            for _ in range(self.sweeps):
                along = op("LpNormalization", op("MatMul", left, right), axis=1, p=2)
                right = op("MatMul", turned, along)
            left = op("Sub", left, op("MatMul", along, op("Transpose", right, perm=[0, 2, 1])))
        score = op("ReduceSum", op("Mul", left, left), steps.LAST, keepdims=0)
        return scores.pruned(op, taps, site, scores.behind_protected(op, score, site), steps.BY_POSITION)

    def _starts(self, op: Ops, tokens: Value, site: Site) -> list[Value]:
        """The start vectors, [C,1] or [B,C,1] each: those of the file, or random mixtures of the tokens."""
        if self.weights is not None:
            start = self.tensor("start", site)
            self.check("start", start, (self.directions, start.shape[1]))
            return [op.constant(vector[:, None]) for vector in start]
        turned = op("Transpose", tokens, perm=[0, 2, 1])
        mixing = directions.gaussian(self.directions, site.tokens - site.protect, self.seed)
        return [op("MatMul", turned, vector[:, None]) for vector in mixing]
