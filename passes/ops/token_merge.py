"""TokenMerge: TokenMatch and TokenCombine as one operator, for runtimes that run the two in fewer launches."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenrt.passes.ops import token_combine, token_match
from tokenrt.passes.ops.contract import Array, Attributes, Gpu, Operator, Shape

MATCH, COMBINE = token_match.OPERATOR, token_combine.OPERATOR


def reference(
    tokens: Array,
    size: Array,
    metric: Array,
    sources: Sequence[int],
    destinations: Sequence[int],
    others: Sequence[int],
    keep: Sequence[int],
    remove: Sequence[int],
    order: int,
    type: int = 1,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Match tokens by their metric, and replace each survivor by the size-weighted mean of itself and those that join it.

    Shapes: tokens [B,N,C], size [B,N,1] float32 (>= 0), metric [B,N,D] -> merged [B,K,C] in the type of `tokens` and total
    [B,K,1] float32, as of TokenCombine; value [B,S] float32, keep [B,K], source [B,R] and destination [B,R] int64, as of
    TokenMatch.
    Attributes: those of TokenMatch, whose ties and order hold here, and of TokenCombine.
    Source: Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023, section 3.
    """
    matched = token_match.reference(metric, sources, destinations, others, keep, remove, order)
    return *token_combine.reference(tokens, size, *matched[1:], type), *matched


STEP = re.compile(r"^ +(?P<made>.+?) = (?P<what>\w+ (?:<.*> )?)\((?P<read>.*)\)$", re.M)


def _named(operator: Operator, body: str) -> str:
    """A body whose own values begin with the operator's name, so that two bodies can stand one behind the other."""
    shared = {*operator.inputs, *operator.outputs}

    def named(values: str) -> str:
        return re.sub(
            r"\w+", lambda name: name[0] if name[0] in shared else f"{operator.name}_{name[0]}", values
        )

    return STEP.sub(lambda step: f"    {named(step['made'])} = {step['what']}({named(step['read'])})", body)


def _gpu(attributes: Attributes, shapes: Sequence[Shape]) -> str:
    parts = zip((MATCH, COMBINE), _shapes(attributes, shapes), strict=True)
    return "".join(_named(part, part.gpu.body(attributes, given)) for part, given in parts if part.gpu)


def _work(attributes: Attributes, shapes: Sequence[Shape]) -> float:
    """Matching and combining."""
    parts = zip((MATCH, COMBINE), _shapes(attributes, shapes), strict=True)
    return sum(part.gpu.work(attributes, given) for part, given in parts if part.gpu)


def _shapes(attributes: Attributes, shapes: Sequence[Shape]) -> tuple[list[Shape], list[Shape]]:
    """The shapes of the inputs of both."""
    tokens, size, metric = shapes
    keep, remove = (attributes["keep"][0],), (attributes["remove"][0],)
    return [metric], [tokens, size, keep, remove, remove]


OPERATOR = Operator(
    name="TokenMerge",
    inputs=("tokens", "size", "metric"),
    outputs=(*COMBINE.outputs, *MATCH.outputs),
    types=(*COMBINE.types, *MATCH.types),
    attributes={**MATCH.attributes, **COMBINE.attributes},
    body=_named(MATCH, MATCH.body) + _named(COMBINE, COMBINE.body),
    gpu=Gpu(_gpu, _work),
    reference=reference,
    widens=("metric",),
)
