"""GTP-ViT: scores, graphs, propagation and sparse attention, written once more with loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.conformance.helpers.given import grid as layout
from tests.passes.methods.helpers import scored
from tests.passes.methods.helpers.loops import BACKENDS, settings
from tests.passes.methods.helpers.scored import ODD
from tokenrt import apply_method
from tokenrt.errors import MethodError
from tokenrt.passes import methods
from tokenrt.passes.methods.pruning.gtp import SCORES


def cosine(a: Any, b: Any) -> float:
    product = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / product if product else 0.0


def score_of(attn: Any, name: str, protect: int) -> list[float]:
    """Score of every token of one image, attn [H,N,N]."""
    what, over = name.split("-")
    heads, tokens = attn.shape[:2]

    def merged(values: list[float]) -> float:
        return max(values) if over == "max" else sum(values) / heads

    own = [merged([float(attn[h, j, j]) for h in range(heads)]) for j in range(tokens)]
    got = [
        merged([sum(float(attn[h, q, j]) for q in range(tokens)) for h in range(heads)])
        for j in range(tokens)
    ]
    if what == "cosine":
        rows = [
            [merged([float(attn[h, i, j]) for h in range(heads)]) for j in range(tokens)]
            for i in range(tokens)
        ]
        return [-sum(cosine(rows[i], rows[j]) for j in range(protect, tokens)) for i in range(tokens)]
    return {
        "class": [merged([float(attn[h, 0, j]) for h in range(heads)]) for j in range(tokens)],
        "image": got,
        "diagonal": own,
        "mixed": [a * b for a, b in zip(own, got, strict=True)],
        "sum": [a + b for a, b in zip(own, got, strict=True)],
    }[what]


def graph_of(x: Any, grid: tuple[int, int], kind: str, neighbours: int) -> Any:
    """Normalised graph of the unprotected tokens of one image."""
    count = len(x)
    links = np.zeros((count, count))
    for i in range(count):
        if kind != "spatial":
            like = [cosine(x[i], x[j]) for j in range(count) if j != i]
            least = sorted(like, reverse=True)[min(neighbours, count - 1) - 1] if like else 0
        for j in range(count):
            apart = max(abs(i // grid[1] - j // grid[1]), abs(i % grid[1] - j % grid[1]))
            near = kind != "semantic" and apart == 1
            alike = kind != "spatial" and i != j and cosine(x[i], x[j]) >= least - 1e-12
            links[i, j] = near or alike
    degree = links.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(links / np.sqrt(degree[:, None] * degree[None]), posinf=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["spatial", "semantic", "mixed"])
@pytest.mark.parametrize(
    ("tokens", "removed", "protect", "batch"), [case for case in settings("gtp") if case.values[0] < 100]
)
def test_equals_the_loops(
    tokens: int, removed: int, protect: int, batch: int, kind: str, backend: str
) -> None:
    given = scored.arrays(tokens, batch)
    keep, cells = tokens - removed, layout(tokens - protect)
    found = apply_method(
        "gtp",
        {**given, "grid": cells},
        keep=keep,
        protect=protect,
        backend=backend,
        graph=kind,
        neighbours=3,
        alpha=0.4,
    )
    for image in range(batch):
        x, size = given["x"][image], given["size"][image]
        kept = scored.best(score_of(given["attn"][image], "mixed-max", protect), keep, protect)
        gone = [i for i in range(tokens) if i not in kept]
        assert found["index"][image].tolist() == kept
        graph = graph_of(x[protect:], cells, kind, 3)
        for slot, i in enumerate(kept):
            passed = [(0.4 * graph[i - protect, j - protect], j) for j in gone] if i >= protect else []
            scored.close(found["tokens"][image, slot], x[i] + sum(w * x[j] for w, j in passed), backend)
            scored.close(found["size"][image, slot], size[i] + sum(w * size[j] for w, j in passed), backend)
        free = [i - protect for i in kept[protect:]]
        scored.close(found["state_graph"][image], graph[np.ix_(free, free)], backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("protect", [0, 1, 2])
def test_scores_equal_the_loops(name: str, protect: int, backend: str) -> None:
    given = scored.arrays(33, 3, sized=False)
    options: dict[str, Any] = {
        "keep": 20,
        "protect": protect,
        "score": name,
        "propagation": "none",
        "backend": backend,
    }
    if name.startswith("class") and not protect:
        with pytest.raises(MethodError, match="needs a class token"):
            apply_method("gtp", given, **options)
        return
    found = apply_method("gtp", given, **options)
    for image in range(3):
        kept = scored.best(score_of(given["attn"][image], name, protect), 20, protect)
        scored.agrees(found, given, image, kept)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*settings("gtp", propagation="mean")])
def test_mean_of_the_others_is_appended(
    tokens: int, removed: int, protect: int, batch: int, backend: str
) -> None:
    given = scored.arrays(tokens, batch)
    keep = tokens - removed
    found = apply_method(
        "gtp", given, keep=keep, protect=protect, backend=backend, propagation="mean", score="image-max"
    )
    for image in range(batch):
        kept = scored.best(score_of(given["attn"][image], "image-max", protect), keep - 1, protect)
        gone = [i for i in range(tokens) if i not in kept]
        rest = {"tokens": found["tokens"][:, :-1], "size": found["size"][:, :-1]}
        scored.agrees({**found, **rest}, given, image, kept)
        scored.close(found["tokens"][image, -1], sum(given["x"][image, i] for i in gone) / len(gone), backend)
        scored.close(found["size"][image, -1], sum(given["size"][image, i] for i in gone), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_graph_is_handed_on_and_never_made_anew(backend: str) -> None:
    given = {**scored.arrays(26, 3), "grid": (5, 5)}
    first = apply_method("gtp", given, keep=20, backend=backend)
    again = scored.arrays(20, 3, 1)
    options: dict[str, Any] = {"keep": 15, "backend": backend, "alpha": 1.0, "token_scale": False}
    second = apply_method("gtp", again, state={"graph": first["state_graph"]}, **options)
    for image in range(3):
        kept, x = second["index"][image], again["x"][image]
        gone = np.setdiff1d(np.arange(20), kept)
        graph = first["state_graph"][image]
        passed = graph[np.ix_(kept[1:] - 1, gone - 1)] @ x[gone]
        scored.close(second["tokens"][image, 1:], x[kept[1:]] + passed, backend)
        free = kept[1:] - 1
        np.testing.assert_allclose(second["state_graph"][image], graph[np.ix_(free, free)], rtol=1e-6)
        np.testing.assert_allclose(second["size"][image], again["size"][image, kept], rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_release_links_one_more_without_a_class_token(backend: str) -> None:
    given = scored.arrays(31, 1)
    for protect, extra in ((0, 1), (1, 0)):
        options: dict[str, Any] = {"keep": 20, "protect": protect, "backend": backend, "graph": "semantic"}
        release = apply_method("gtp", given, variant="reference", neighbours=4, **options)
        paper = apply_method("gtp", given, neighbours=4 + extra, **options)
        np.testing.assert_array_equal(release["tokens"], paper["tokens"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("share", [0.05, 0.4, 0.7, 0.999])
def test_sparse_scores_read_the_largest_entries_of_each_head(share: float, backend: str) -> None:
    given = scored.arrays(32, 3, sized=False)
    k = int(32 * 32 * (1 - share))
    sparse = given["attn"].copy()
    for image in range(3):
        for head in sparse[image]:
            head[head < sorted(head.ravel())[max(k, 1) - 1]] = 0
    options: dict[str, Any] = {
        "keep": 31,
        "propagation": "none",
        "order": "score",
        "backend": backend,
        "score": "image-mean",
    }
    found = apply_method("gtp", given, sparsity=share, **options)
    np.testing.assert_array_equal(
        found["index"], apply_method("gtp", {**given, "attn": sparse}, **options)["index"]
    )


def test_published_order_is_by_score() -> None:
    given = {**scored.arrays(26, 1), "grid": (5, 5)}
    found = apply_method("gtp", given, keep=12, order="score")
    score = score_of(given["attn"][0], "mixed-max", 1)
    assert found["index"][0].tolist() == [0, *sorted(range(1, 26), key=lambda i: -score[i])[:11]]
    placed = apply_method("gtp", given, keep=12)
    np.testing.assert_allclose(np.sort(found["tokens"], axis=1), np.sort(placed["tokens"], axis=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_leaves_first_and_passes_nothing_on(backend: str) -> None:
    given = scored.arrays(12, 2)
    given["size"][:, 6:] = 0
    found = apply_method("gtp", given, keep=6, backend=backend, graph="semantic")
    assert found["index"].tolist() == [[*range(6)]] * 2
    np.testing.assert_allclose(found["tokens"], given["x"][:, :6], rtol=1e-6)


def test_ties_keep_the_first() -> None:
    scored.ties("gtp", {**scored.arrays(10, 2), "grid": (3, 3)}, 4)


@pytest.mark.parametrize("propagation", ["graph", "mean", "none"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_stay_in_range(odd: str, propagation: str) -> None:
    scored.stays_in_range("gtp", ODD[odd], propagation=propagation, graph="semantic")


def test_what_it_cannot_do_is_said() -> None:
    given = scored.arrays(12, 1)
    with pytest.raises(MethodError, match=r"needs the grid of the 11 unprotected tokens.*graph=semantic"):
        apply_method("gtp", given, keep=7)
    with pytest.raises(MethodError, match=r"neighbours=0, sparsity=1\.5"):
        methods.get("gtp")(neighbours=0, sparsity=1.5)
    assert methods.get("gtp")(propagation="mean").after_keeping(kept=10, protect=1) == 12
