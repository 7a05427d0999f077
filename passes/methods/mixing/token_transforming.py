"""Token Transforming: spread every token over K informative ones, by similarity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, steps


@dataclass(frozen=True)
class TokenTransforming(Method):
    """Many-to-many: each token gives itself in shares to the K most important ones, whose outputs are weighted means.

    Shares of a token are softmax over outputs of cosine / temperature, of mean keys less their mean by size: what all
    keys share makes every cosine alike, and the outputs one blur. An output is the mean of all tokens by share times
    size, its size the sum of those, so that sizes add up to what they were. Outputs stand at the important tokens,
    in ascending position; positions are restored by the same shares. Numbers that are not finite count as 0.
    Options: score: class, received, key_norm or auto; temperature.
    """

    name: ClassVar[str] = "token_transforming"
    summary: ClassVar[str] = "spread every token over the K most attended ones, by similarity of keys"
    paper: ClassVar[str] = "Zeng et al., Token Transforming, 2025"
    reads: ClassVar[tuple[str, ...]] = ("tokens", "metric", "class_attention", "received_attention")
    evidence: ClassVar[Evidence] = "mathematics"
    systems: ClassVar[tuple[str, ...]] = ("Token Transforming",)
    merges: ClassVar[bool] = True
    deviations: ClassVar[str] = (
        "no code is public: Y = W X with informative tokens and row-normalised W is as published, the similarity, its "
        "temperature and the weights by size are this project's"
    )

    score: str = "auto"
    temperature: float = 0.02

    def __post_init__(self) -> None:
        steps.choice(self.name, "score", self.score, ("auto", "class", "received", "key_norm"))
        if not self.temperature > 0:
            raise MethodError(
                f"option temperature={self.temperature} of method {self.name!r}: expected a number above 0"
            )

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        score = steps.free(op, steps.importance(op, taps, site, self.score), site)
        chosen = op("TokenSelect", score, keep=clusters.outputs(site), protect=0, order=0)
        shares = self._shares(op, taps, site, chosen)
        size = steps.sizes(op, taps, site)
        row = op("Transpose", steps.free(op, size, site), perm=[0, 2, 1])
        mass = op("Mul", shares, row)
        total = op("ReduceSum", mass, clusters.LAST, keepdims=1)
        points, mean = clusters.points(op, clusters.plain(op, taps, site), site.tokens - site.protect)
        share = op("Div", mass, op("Max", total, 1e-30))
        mixture = op("CastLike", op("Add", op("MatMul", share, points), mean), taps.tokens)
        affinity = op("Transpose", shares, perm=[0, 2, 1])
        return Reduction(
            clusters.ahead(op, taps, site, mixture),
            clusters.after_protected(op, size, total, site),
            clusters.whole(op, taps, site, chosen),
            clusters.whole(op, taps, site, op("ArgMax", shares, axis=1, keepdims=0)),
            affinity=clusters.with_protected(op, affinity, site),
        )

    def _shares(self, op: Ops, taps: Taps, site: Site, chosen: Value) -> Value:
        """Return what each token gives to each output: [B,M,T], columns adding up to 1."""
        keys = clusters.finite(op, steps.free(op, taps.metric(), site))
        weight = steps.free(op, steps.sizes(op, taps, site), site)
        total = op("Max", op("ReduceSum", weight, clusters.ROWS, keepdims=1), 1e-30)
        mean = op("Div", op("ReduceSum", op("Mul", keys, weight), clusters.ROWS, keepdims=1), total)
        unit = op("LpNormalization", op("Sub", keys, mean), axis=2, p=2)
        selected = steps.gather(op, unit, chosen)
        similarity = op("MatMul", selected, op("Transpose", unit, perm=[0, 2, 1]))
        return op("Softmax", op("Mul", similarity, 1.0 / self.temperature), axis=1)
