"""MCTF: criteria, both rounds, every pooling and the merged attention, against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import loops
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError

TAU = {"tau_sim": 2.0, "tau_info": 5.0, "tau_size": 7.0}


def criteria(x: Any, attn: Any, size: Any, taus: dict[str, float]) -> Any:
    """W_ij for all i and j."""
    tokens = len(x)
    received = [1 / np.mean(attn[:, :, j]) for j in range(tokens)]
    small = [1 / size[j] for j in range(tokens)]
    found = np.ones((tokens, tokens))
    for i in range(tokens):
        for j in range(tokens):
            if taus["tau_sim"]:
                found[i, j] *= ((loops.cosine(x[i], x[j]) + 1) / 2) ** (1 / taus["tau_sim"])
            if taus["tau_info"]:
                pair = received[i] * received[j] / max(received) ** 2
                found[i, j] *= pair ** (1 / taus["tau_info"])
            if taus["tau_size"]:
                found[i, j] *= (small[i] * small[j] / max(small) ** 2) ** (1 / taus["tau_size"])
    return found


def pairs(scores: Any, removed: int, protect: int, *, bidirectional: bool, variant: str) -> loops.Groups:
    tokens = range(len(scores))
    others = [2 * i for i in range(protect)] if variant == "reference" else [*range(protect)]
    even = [i for i in tokens if i % 2 == 0 and i not in others]
    odd = [i for i in tokens if i % 2 == 1 and i not in others]
    first = removed // 2 if bidirectional else removed
    best = {a: max(odd, key=lambda b: scores[a, b]) for a in even}
    ranked = sorted(even, key=lambda a: -scores[a, best[a]])
    rest = sorted(ranked[first:]) if protect else ranked[first:]
    members = {i: [i] for i in tokens}
    for a in ranked[:first]:
        members[best[a]].append(a)
    if not bidirectional:
        return loops.Groups([*others, *rest, *odd], members)
    back = {b: max(rest, key=lambda a: scores[a, b]) for b in odd}
    order = sorted(odd, key=lambda b: -scores[back[b], b])
    for b in order[: removed - first]:
        members[back[b]] += members[b]
    return loops.Groups([*others, *rest, *order[removed - first :]], members)


def pooled(x: Any, groups: loops.Groups, attn: Any, size: Any, pooling: str) -> Any:
    if pooling == "max":
        return np.array([np.max([x[i] for i in groups.members[k]], axis=0) for k in groups.order])
    weight = {"mean": np.ones(len(x)), "size": size, "attention": attn.mean((0, 1)) * size}[pooling]
    return groups.mean(x, weight)


def compare(given: dict[str, Any], removed: int, protect: int, **options: Any) -> None:
    taus = {name: options.get(name, default) for name, default in TAU.items()}
    made = {"pooling": "attention", "bidirectional": True, "variant": "paper", **options, **taus}

    def wanted(image: int) -> loops.Wanted:
        x, attn, size = given["x"][image], given["attn"][image], given["size"][image, :, 0]
        groups = pairs(
            criteria(x, attn, size, taus),
            removed,
            protect,
            bidirectional=made["bidirectional"],
            variant=made["variant"],
        )
        tokens = pooled(x, groups, attn, size, made["pooling"])
        return tokens, groups.total(size), groups.goes(len(x)), groups.order

    loops.check("mctf", given, wanted, keep=given["x"].shape[1] - removed, protect=protect, **made)


@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*loops.settings("mctf")])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_equals_the_loops(tokens: int, removed: int, protect: int, batch: int, bidirectional: bool) -> None:
    compare(loops.arrays(tokens, batch), removed, protect, bidirectional=bidirectional)


@pytest.mark.parametrize("pooling", ["attention", "size", "mean", "max"])
@pytest.mark.parametrize("protect", [0, 1, 2])
def test_every_pooling(pooling: str, protect: int) -> None:
    compare(loops.arrays(21, 2), 8, protect, pooling=pooling)


@pytest.mark.parametrize("left_out", [{"tau_info": 0}, {"tau_size": 0}, {"tau_sim": 0}, {"tau_sim": 1}])
def test_a_temperature_of_zero_leaves_its_factor_out(left_out: dict[str, float]) -> None:
    compare(loops.arrays(20, 2), 7, 1, **left_out)


def test_the_release_protects_even_tokens() -> None:
    compare(loops.arrays(22, 2), 7, 2, variant="reference")


@pytest.mark.parametrize("pooling", ["attention", "size", "mean", "max"])
def test_merged_attention_pools_rows_and_adds_columns(pooling: str) -> None:
    given = loops.arrays(14, 2)
    for backend in loops.BACKENDS:
        found = apply_method("mctf", given, keep=9, backend=backend, pooling=pooling, reuse=True)
        for image in range(2):
            goes, attn = found["assign"][image], given["attn"][image]
            size = given["size"][image, :, 0]
            groups = loops.Groups(
                found["index"][image].tolist(),
                {
                    int(stay): np.flatnonzero(goes == slot).tolist()
                    for slot, stay in enumerate(found["index"][image])
                },
            )
            for head in range(loops.H):
                summed = np.stack([attn[head][:, goes == slot].sum(1) for slot in range(9)], axis=1)
                np.testing.assert_allclose(
                    found["state_attention"][image, head],
                    pooled(summed, groups, attn, size, pooling),
                    atol=2e-6,
                )
            if pooling != "max":
                np.testing.assert_allclose(found["state_attention"][image].sum(-1), 1, atol=1e-5)


def test_sizes_may_be_missing() -> None:
    given = loops.arrays(21, 2)
    ones = given | {"size": np.ones_like(given["size"])}
    del given["size"]
    both = [apply_method("mctf", tensors, keep=13) for tensors in (given, ones)]
    for key in ("tokens", "size", "assign"):
        np.testing.assert_array_equal(both[0][key], both[1][key])


@pytest.mark.parametrize("pooling", ["attention", "size", "mean", "max"])
def test_padding_and_odd_numbers(pooling: str) -> None:
    loops.survives_odd_numbers("mctf", 25, pooling=pooling)
    loops.loses_nothing("mctf", 25, pooling=pooling)
    given = loops.arrays(16, 1)
    given["size"][:, 8:] = 0
    given["attn"][:, :, :, 8:] = 0
    for backend in loops.BACKENDS:
        found = apply_method("mctf", given, keep=12, protect=0, backend=backend, pooling=pooling)
        real = found["tokens"][0, found["assign"][0, :8]]
        np.testing.assert_allclose(real, given["x"][0, :8], rtol=1e-6)


def test_all_equal_scores_take_the_first() -> None:
    given = loops.arrays(12, 1)
    given["x"][:] = 1
    given["attn"][:] = 1 / 12
    given["size"][:] = 1
    for backend in loops.BACKENDS:
        found = apply_method("mctf", given, keep=8, backend=backend)
        assert found["index"][0].tolist() == [0, 6, 8, 10, 5, 7, 9, 11]
        assert found["assign"][0].tolist() == [0, 1, 1, 1, 1, 4, 1, 5, 2, 6, 3, 7]


def test_what_it_cannot_do_is_refused() -> None:
    given = loops.arrays(9, 1)
    with pytest.raises(MethodError, match="option tau_sim=-1"):
        apply_method("mctf", given, keep=8, tau_sim=-1)
    with pytest.raises(MethodError, match="option pooling=x"):
        apply_method("mctf", given, keep=8, pooling="x")
    with pytest.raises(PlanError, match="leaves at least 5 of 9"):
        apply_method("mctf", given, keep=4)
