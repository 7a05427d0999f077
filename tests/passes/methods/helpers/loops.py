"""The bipartite family once more, one token at a time: what the methods' tests compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tokenrt import apply_method
from tokenrt.passes import methods

BACKENDS = ("numpy", "onnxruntime")
C, D, H = 6, 5, 2
SIZES = (2, 3, 31, 32, 33, 197)
CLOSE = {"numpy": 1e-10, "onnxruntime": 2e-5}


def settings(name: str, **options: Any) -> Iterator[Any]:
    """Tokens, removed, protected, batch: one token less and as few as the method leaves; the large size with one protected."""
    method = methods.get(name).from_options(options)
    for tokens in SIZES:
        for protect in (0, 1, 2):
            most = tokens - method.fewest(tokens, protect) if tokens > protect else 0
            for removed in sorted({1, most}):
                if 1 <= removed <= most and (tokens < 100 or protect == 1):
                    yield pytest.param(tokens, removed, protect, 1 if tokens % 2 else 3)


def arrays(tokens: int, batch: int, seed: int = 0, *, sized: bool = True) -> dict[str, Any]:
    """Seeded tensors in float64; attention rows add up to one."""
    rng = np.random.default_rng([seed, tokens, batch])
    given = {
        "x": rng.standard_normal((batch, tokens, C)),
        "normed": rng.standard_normal((batch, tokens, C)),
        "keys": rng.standard_normal((batch, H, tokens, D)),
        "attn": rng.random((batch, H, tokens, tokens)) ** 4,
    }
    given["attn"] /= given["attn"].sum(-1, keepdims=True)
    if sized:
        given["size"] = rng.integers(1, 5, (batch, tokens, 1)).astype(np.float64)
    return given


@dataclass
class Groups:
    """Which tokens each output holds: `order` names the one that stays, `members` all of them, itself first."""

    order: list[int]
    members: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for position in self.order:
            self.members.setdefault(position, [position])

    def mean(self, x: Any, weight: Any) -> Any:
        """Weighted means [K,C], a sum over the members at a time."""
        rows = []
        for position in self.order:
            total, mass = np.zeros(x.shape[1]), 0.0
            for token in self.members[position]:
                total, mass = total + weight[token] * x[token], mass + weight[token]
            rows.append(total / mass)
        return np.array(rows)

    def total(self, size: Any) -> list[float]:
        return [sum(float(size[token]) for token in self.members[position]) for position in self.order]

    def goes(self, tokens: int) -> list[int]:
        """The output of each token, -1 where it is in none."""
        slots = {token: slot for slot, position in enumerate(self.order) for token in self.members[position]}
        return [slots.get(token, -1) for token in range(tokens)]


def cosine(left: Any, right: Any) -> float:
    norm = float(np.sqrt(np.sum(left * left)) * np.sqrt(np.sum(right * right)))
    return float(np.sum(left * right)) / norm if norm else 0.0


def bipartite(
    metric: Any,
    others: Sequence[int],
    sources: Sequence[int],
    destinations: Sequence[int],
    removed: int,
    *,
    by_value: bool = False,
) -> tuple[Groups, dict[int, float]]:
    """Each source's best destination; the `removed` most similar sources join theirs."""
    best, value = dict[int, int](), dict[int, float]()
    for a in sources:
        similar = {b: cosine(metric[a], metric[b]) for b in destinations}
        best[a] = max(destinations, key=similar.__getitem__)
        value[a] = similar[best[a]]
    ranked = sorted(sources, key=lambda a: -value[a])
    stay = ranked[removed:] if by_value else [a for a in sources if a in ranked[removed:]]
    groups = Groups([*others, *stay, *destinations])
    for a in ranked[:removed]:
        groups.members[best[a]].append(a)
    return groups, value


def tome(metric: Any, removed: int, protect: int) -> Groups:
    """ToMe's pairs: even and odd positions behind the protected ones."""
    free = range(protect, len(metric))
    even, odd = [i for i in free if i % 2 == 0], [i for i in free if i % 2]
    return bipartite(metric, range(protect), even, odd, removed, by_value=protect == 0)[0]


Wanted = tuple[Any, Any, Sequence[int], Sequence[int]]
"""Of one image: tokens [K,C], sizes [K], where each token went, and the token each output stands for."""


def check(
    name: str,
    given: Mapping[str, Any],
    wanted: Callable[[int], Wanted],
    *,
    keep: int,
    protect: int,
    **options: Any,
) -> None:
    """Compare both backends with the loops, image by image."""
    for backend in BACKENDS:
        kind = np.float64 if backend == "numpy" else np.float32
        tensors = {key: value if key == "grid" else np.asarray(value, kind) for key, value in given.items()}
        found = apply_method(name, tensors, keep=keep, protect=protect, backend=backend, **options)
        for image in range(len(given["x"])):
            tokens, size, goes, stays = wanted(image)
            assert found["assign"][image].tolist() == list(goes), backend
            assert found["index"][image].tolist() == list(stays), backend
            np.testing.assert_allclose(found["tokens"][image], tokens, atol=CLOSE[backend])
            np.testing.assert_allclose(found["size"][image, :, 0], size, rtol=CLOSE[backend], atol=1e-9)


def in_range(found: Mapping[str, Any], tokens: int, keep: int) -> None:
    """Every index points at something that exists."""
    assert found["tokens"].shape[1] == keep
    assert ((found["index"] >= 0) & (found["index"] < tokens)).all()
    assert ((found["assign"] >= -1) & (found["assign"] < keep)).all()


def survives_odd_numbers(name: str, keep: int, grid: tuple[int, int] | None = None, **options: Any) -> None:
    """NaN, infinities, zeros and equal tokens: indices in range, shapes as asked for, the protected token as it came."""
    tokens = 37
    for bad in (np.nan, np.inf, -np.inf, 0.0, 1.0):
        for where in (7, 8, slice(1, None)):
            given = arrays(tokens, 2)
            for tensor in ("x", "normed"):
                given[tensor][:, where] = bad
            given["keys"][:, :, where] = bad
            if grid:
                given["grid"] = grid
            for backend in BACKENDS:
                found = apply_method(name, given, keep=keep, backend=backend, **options)
                in_range(found, tokens, keep)
                np.testing.assert_allclose(found["tokens"][:, 0], given["x"][:, 0], rtol=1e-6)


def loses_nothing(name: str, keep: int, grid: tuple[int, int] | None = None, **options: Any) -> None:
    """All tokens equal: the outputs are that token, and the sizes of all that stay add up."""
    given = arrays(37, 2)
    for tensor in ("x", "keys", "normed"):
        given[tensor][:] = given[tensor][..., 3:4, :]
    if grid:
        given["grid"] = grid
    for backend in BACKENDS:
        found = apply_method(name, given, keep=keep, backend=backend, **options)
        np.testing.assert_allclose(found["tokens"], given["x"][:, :keep], rtol=5e-7)
        stays = (found["assign"] >= 0)[:, :, None]
        np.testing.assert_allclose(found["size"].sum(axis=1), (given["size"] * stays).sum(axis=1), rtol=1e-6)
