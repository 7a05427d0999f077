"""Methods whose scorer is trained: without weights they say which they want, with random ones they do what is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.helpers import given
from tokenrt import apply_method
from tokenrt.errors import MethodError
from tokenrt.passes import methods

BACKENDS = ("numpy", "onnxruntime")
NAMES = [
    name for name in methods.of_tokens() if methods.get(name).needs and methods.get(name).home != "block"
]


@pytest.mark.parametrize("name", NAMES)
def test_without_its_weights_a_method_says_what_it_wants(name: str) -> None:
    options = given.call(methods.get(name), 37, 25, 1, 1)
    del options["weights"]
    with pytest.raises(MethodError) as refusal:
        apply_method(name, **options)
    said = str(refusal.value)
    assert f"method {name!r} needs trained weights: it takes --set weights=FILE" in said
    assert all(f"{tensor} [{shape}]" in said for tensor, shape in methods.get(name).needs.items())


def drawn(name: str, protect: int, keep: int) -> tuple[dict[str, Any], dict[str, Any]]:
    method = methods.get(name)
    tensors = given.arrays(protect + 24, 2, protect)
    weights = {
        key: np.asarray(value) for key, value in given.weights(method, protect + 24, keep, protect).items()
    }
    return {"x": tensors["x"], "size": tensors["size"], "grid": (4, 6)}, weights


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 2])
def test_the_selector_is_an_encoder_with_a_head(protect: int, backend: str) -> None:
    torch = pytest.importorskip("torch")
    tensors, weights = drawn("when_less_is_enough", protect, protect + 9)
    options: dict[str, Any] = {"keep": protect + 9, "protect": protect, "heads": 2, "weights": weights}
    found = apply_method("when_less_is_enough", tensors, backend=backend, **options)
    rows = torch.from_numpy(tensors["x"][:, protect:])
    hidden = weights["linear1.weight"].shape[1]
    for number in range(3):
        layer = torch.nn.TransformerEncoderLayer(
            given.C, 2, hidden, dropout=0, activation="gelu", batch_first=True, norm_first=True
        )
        layer.load_state_dict(
            {key: torch.from_numpy(value[number]) for key, value in weights.items() if "head" not in key}
        )
        with torch.no_grad():
            rows = layer.train()(rows)
    logits = rows.numpy() @ weights["head.weight"].T + weights["head.bias"]
    score = logits[..., 0] - logits[..., 1]
    kept = np.sort(np.argsort(-score, axis=1)[:, :9], axis=1)
    np.testing.assert_array_equal(found["index"][:, protect:], kept + protect)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 2])
def test_focusllava_pools_what_the_router_wants_coarse(protect: int, backend: str) -> None:
    tensors, weights = drawn("focusllava", protect, protect + 15)
    options: dict[str, Any] = {"keep": protect + 15, "protect": protect, "weights": weights}
    found = apply_method("focusllava", tensors, backend=backend, **options)
    for image in range(2):
        x = tensors["x"][image, protect:].reshape(4, 6, -1).astype(np.float64)
        regions = [(top, left) for top in (0, 2) for left in (0, 2, 4)]
        means = np.array([x[top : top + 2, left : left + 2].mean((0, 1)) for top, left in regions])
        logits = means @ weights["router.weight"].T + weights["router.bias"]
        pooled = np.sort(np.argsort(logits[:, 0] - logits[:, 1])[:3])
        np.testing.assert_allclose(found["tokens"][image, -3:], means[pooled], atol=1e-6)
        assert (np.diff(found["index"][image, :-3]) > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 2])
def test_serum_keeps_what_is_marked_and_merges_the_rest(protect: int, backend: str) -> None:
    tensors, weights = drawn("serum", protect, protect + 7)
    options: dict[str, Any] = {"keep": protect + 7, "protect": protect, "weights": weights}
    found = apply_method("serum", tensors, backend=backend, **options)
    for image in range(2):
        x = tensors["x"][image].astype(np.float64)
        logits = (x @ weights["mask.weight"].T + weights["mask.bias"]) @ weights["queries"].T
        mark = 1 / (1 + np.exp(-logits.max(axis=1)))
        kept = protect + np.sort(np.argsort(-mark[protect:])[:7])
        assert found["index"][image].tolist() == [*range(protect), *kept]
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        groups = {place: [place] for place in kept}
        for place in set(range(protect, len(x))) - set(kept):
            groups[kept[np.argmax(unit[kept] @ unit[place])]].append(place)
        for slot, place in enumerate(kept):
            own = groups[place]
            mean = (mark[own, None] * x[own]).sum(axis=0) / mark[own].sum()
            np.testing.assert_allclose(found["tokens"][image, protect + slot], mean, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 2])
def test_ager_adds_the_patches_of_each_centre(protect: int, backend: str) -> None:
    tensors, weights = drawn("ager", protect, protect + 5)
    options: dict[str, Any] = {"keep": protect + 5, "protect": protect, "weights": weights}
    found = apply_method("ager", tensors, backend=backend, **options)
    for image in range(2):
        x = tensors["x"][image, protect:].astype(np.float64)
        logits = (weights["centers"] @ weights["q.weight"].T) @ (x @ weights["k.weight"].T).T
        values, owner = x @ weights["v.weight"].T, logits.argmax(axis=0)
        for slot, center in enumerate(weights["centers"]):
            own = owner == slot
            added = (
                values[own].mean(axis=0) @ weights["proj.weight"].T + weights["proj.bias"] if own.any() else 0
            )
            np.testing.assert_allclose(found["tokens"][image, protect + slot], center + added, atol=1e-5)
