"""Entries of a cache: every method against NumPy and against a plain loop, from call to call, by head and in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods

NAMES = [name for name in methods.names() if methods.get(name).home == "cache"]
BACKENDS = ("numpy", "onnxruntime")
C, D, HIDDEN = 10, 8, 6


def cache(batch: int, heads: int, tokens: int, asking: int, shared: int = 1, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng([seed, tokens])
    shapes = {"keys": (heads, tokens), "values": (heads, tokens), "queries": (heads * shared, asking)}
    found = {
        name: rng.standard_normal((batch, *shape, D)).astype(np.float32) for name, shape in shapes.items()
    }
    return found | {"hidden": rng.standard_normal((batch, tokens, C)).astype(np.float32)}


def options(name: str, heads: int, shared: int) -> dict[str, Any]:
    if not methods.get(name).needs:
        return {}
    rng = np.random.default_rng(3)
    shapes = {
        "fc1": (HIDDEN, (shared + 2) * heads * D), "fc2": (heads, HIDDEN),
        "types.weight": (3 * heads, C), "types.bias": (3 * heads,),
    }  # fmt: skip
    own = {key: rng.standard_normal(shapes[key]).astype(np.float32) for key in methods.get(name).needs}
    return {"weights": own}


def attention(given: dict[str, Any]) -> Any:
    """[B,A,Q,N] in float64, causal."""
    keys, queries = (given[name].astype(np.float64) for name in ("keys", "queries"))
    keys = np.repeat(keys, queries.shape[1] // keys.shape[1], axis=1)
    logits = queries @ keys.swapaxes(2, 3) * D**-0.5
    tokens, asking = keys.shape[2], queries.shape[2]
    logits[:, :, np.arange(tokens) > np.arange(tokens - asking, tokens)[:, None]] = -np.inf
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("tokens", "keep", "batch", "shared"), [(4, 3, 1, 1), (33, 32, 2, 1), (64, 12, 1, 3)], ids=str
)
def test_onnxruntime_chooses_as_numpy(name: str, tokens: int, keep: int, batch: int, shared: int) -> None:
    given = cache(batch, 2, tokens, tokens, shared)
    more = options(name, 2, shared)
    for heads in ("own", "common"):
        exact, found = (
            apply_method(name, given, keep=keep, backend=backend, heads=heads, **more) for backend in BACKENDS
        )
        np.testing.assert_array_equal(found["index"], exact["index"])
        assert found["index"].shape == (batch, 2 if heads == "own" else 1, keep)
        assert (np.diff(found["index"]) > 0).all()
        index = np.broadcast_to(found["index"], (batch, 2, keep))[..., None]
        for part in ("keys", "values"):
            np.testing.assert_array_equal(found[part], np.take_along_axis(given[part], index, axis=2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [1, 2])
def test_heavy_hitters_go_on_from_call_to_call(shared: int, backend: str) -> None:
    """A prompt of 20, cut to 12, and two tokens more: sums of what stays and of what asked since."""
    given = cache(1, 2, 20, 20, shared)
    first = apply_method("h2o", given, keep=12, recent=4, backend=backend)
    mine = attention(given).sum(2).reshape(2, shared, 20).sum(1)
    for head in range(2):
        heavy = np.sort(np.argsort(-mine[head, :16], kind="stable")[:8])
        assert first["index"][0, head].tolist() == [*heavy, 16, 17, 18, 19]
    fresh = cache(1, 2, 2, 2, shared, seed=1)
    del given["hidden"]
    later = {name: np.concatenate([first[name], fresh[name]], axis=2) for name in ("keys", "values")}
    later["queries"] = fresh["queries"]
    state = {"score": first["state_score"]}
    second = apply_method("h2o", later, keep=12, recent=4, state=state, backend=backend)
    sums = attention(later).sum(2).reshape(2, shared, 14).sum(1)
    sums[:, :12] += np.take_along_axis(mine, first["index"][0], axis=1)
    for head in range(2):
        heavy = np.sort(np.argsort(-sums[head, :10], kind="stable")[:8])
        assert second["index"][0, head].tolist() == [*heavy, 10, 11, 12, 13]
    np.testing.assert_allclose(
        second["state_score"][0], np.take_along_axis(sums, second["index"][0], axis=1), rtol=1e-5
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_salient_entries_are_rated_by_those_who_can_see_them(backend: str) -> None:
    given = cache(1, 2, 40, 40)
    found = apply_method("zipcache", given, keep=15, share=0.1, backend=backend)
    probes = methods.get("zipcache").from_options({"share": 0.1}).probes(40)
    assert len(set(probes.tolist())) == 8
    assert probes[-4:].tolist() == [36, 37, 38, 39]
    rows = attention(given)[0][:, probes].sum(1)
    sees = (probes[:, None] >= np.arange(40)).sum(0)
    for head in range(2):
        wanted = np.sort(np.argsort(-rows[head] / sees, kind="stable")[:15])
        assert found["index"][0, head].tolist() == wanted.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_trained_layer_ranks_what_is_global(backend: str) -> None:
    given, more = cache(1, 2, 20, 1), options("nats", 2, 1)
    found = apply_method("nats", given, keep=8, window=3, backend=backend, **more)
    rated = given["hidden"][0] @ more["weights"]["types.weight"].T + more["weights"]["types.bias"]
    kinds = rated.reshape(20, 3, 2)
    score = kinds[:, 0] - kinds[:, 1:].max(axis=1)
    for head in range(2):
        best = np.sort(np.argsort(-score[:17, head], kind="stable")[:5])
        assert found["index"][0, head].tolist() == [*best, 17, 18, 19]


def test_a_temperature_rises_with_the_calls_and_noise_changes_the_choice() -> None:
    given = cache(1, 1, 48, 48)
    plain = apply_method("keyformer", given, keep=12)["index"]
    assert (apply_method("keyformer", given, keep=12, step=0.0, call=9)["index"] == plain).all()
    hot = {"temperature": np.full((1, 1), 1.5, np.float32)}
    given_it = apply_method("keyformer", given | hot, keep=12, temperature="input")
    same = apply_method("keyformer", given, keep=12, start=1.5)
    np.testing.assert_allclose(given_it["state_score"], same["state_score"], rtol=1e-6)
    assert (given_it["index"] == same["index"]).all()
    noise = np.random.default_rng(5).gumbel(size=(1, 1, 48, 48)).astype(np.float32)
    noisy = apply_method("keyformer", given | {"noise": 3 * noise}, keep=12, noise="input")["index"]
    assert (noisy != plain).any()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("snapkv", {"window": 40}, "a window of 40 tokens must be smaller than the 12 entries"),
        ("snapkv", {"kernel": 4}, "kernel=4 of method 'snapkv': expected an odd number"),
        ("h2o", {"recent": 12}, "keeps 13 to 31 of 32 entries"),
        ("h2o", {"heads": "some"}, "heads=some of method 'h2o': expected one of own, common"),
        ("keyformer", {"recent": 1.0}, "expected 0 to less than 1"),
        ("keyformer", {"noise": "input"}, "needs the tensor noise"),
        ("locret", {}, "method 'locret' needs trained weights"),
        ("dycoke_cache", {"start": 30, "length": 5}, "12 of 32 entries cannot stay"),
        ("zipcache", {"share": 0.0}, "expected more than 0"),
        ("zipcache", {"seed": -1}, "seed=-1 of method 'zipcache': expected 0 or more"),
        ("h2o", {"keep": 32}, "keeps 1 to 31 of 32 entries"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises((MethodError, PlanError), match=message):
        apply_method(name, cache(1, 2, 32, 32), **{"keep": 12} | change)


def test_shapes_that_do_not_go_together_are_refused() -> None:
    given = cache(1, 2, 16, 16)
    with pytest.raises(MethodError, match="the entries of the cache are missing: tensor keys"):
        apply_method("h2o", {"queries": given["queries"]}, keep=8)
    with pytest.raises(MethodError, match="queries of 3 heads and 16 tokens do not go with keys of 2 heads"):
        apply_method("h2o", given | {"queries": np.repeat(given["queries"][:, :1], 3, axis=1)}, keep=8)
    with pytest.raises(MethodError, match=r"with shapes queries \[B,A,Q,D\]; given: keys"):
        apply_method("h2o", {"keys": given["keys"]}, keep=8)
    with pytest.raises(MethodError, match="no tensor is called 'grid'"):
        apply_method("h2o", given | {"grid": (4, 4)}, keep=8)
    wide = {"types.weight": np.zeros((6, C + 1), np.float32), "types.bias": np.zeros(6, np.float32)}
    with pytest.raises(MethodError, match=rf"must have shape \[6, {C}\] here, got \[6, {C + 1}\]"):
        apply_method("nats", given, keep=8, weights=wide)
    with pytest.raises(MethodError, match="no tensor is called 'x'"):
        apply_method("h2o", given | {"x": given["keys"][:, 0]}, keep=8)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("h2o", {"protect": 4, "restore": True}, "for which protect, restore says nothing"),
        ("h2o", {"multiple_of": 4}, "for which multiple_of says nothing"),
        ("h2o", {"state": {"scores": np.zeros((1, 2, 12))}}, "reads no state 'scores'; it reads score"),
        ("locret", {"state": {"score": np.zeros((1, 2, 12))}}, "reads no state 'score'; it reads none"),
        (
            "h2o",
            {"state": {"score": np.zeros((1, 2, 3))}},
            r"has the shape \[1, 2, 3\], .* here \[1, 2, 12\]",
        ),
    ],
)
def test_what_a_cache_does_not_read_is_refused(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method(name, cache(1, 2, 16, 4), keep=8, **options(name, 2, 1), **change)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_always_stays_is_above_every_score(backend: str) -> None:
    attention = np.ones((1, 1, 1, 16), np.float32)
    attention[..., 4:12] = np.inf
    given = {"keys": np.zeros((1, 1, 16, 2), np.float32), "attn": attention}
    found = apply_method("dycoke_cache", given, keep=10, start=4, length=8, backend=backend)
    assert found["index"][0, 0].tolist() == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15]
