"""Weights trained for the methods that need some: what torch computes is what every backend does, and training helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.helpers import given
from tokenrt.errors import PlanError, UnsupportedError
from tokenrt.passes import methods
from tokenrt.passes.methods.contract import Site
from tokenrt.passes.methods.tensors import TensorTaps
from tokenrt.passes.ops.numpy_backend import NumpyOps
from tokenrt.passes.planning.budget import Budget
from tokenrt.perf.bench.quality import digits, quality, trained
from tokenrt.perf.bench.quality.torch_ops import TorchOps, Weight, tensor
from tokenrt.perf.bench.quality.trained import Subject

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

NEEDING = [name for name in methods.at_blocks() if methods.get(name).needs]
TOKENS, KEEP, BATCH = 17, 11, 4
SITE = Site(TOKENS, KEEP, 1, given.H, given.D, initial=TOKENS, grid=(4, 4), channels=given.C)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny() -> Any:
    """A model of four blocks and 17 tokens, seeded and frozen."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(
        img_size=16, patch_size=4, in_chans=1, num_classes=5, embed_dim=12, depth=4, num_heads=2, mlp_ratio=2
    )
    net.eval().requires_grad_(False)
    for parameter in net.parameters():
        # Large enough that every token has its share in the answer, which timm's own start has not.
        if parameter.ndim > 1:
            parameter.normal_(0, 0.4)
    return net


@pytest.fixture(scope="module")
def exported(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    example, batch = (torch.zeros(2, 1, 16, 16),), {0: torch.export.Dim("batch")}
    torch.onnx.export(
        tiny, example, path, dynamo=True, dynamic_shapes=(batch,), external_data=False, verbose=False
    )
    return path


def drawn(name: str) -> dict[str, Any]:
    return {
        key: array.astype(np.float32)
        for key, array in given.weights(methods.get(name), TOKENS, KEEP, 1).items()
    }


def under_training(name: str) -> tuple[Any, dict[str, Any]]:
    tensors = {
        f"block0.{key}": torch.from_numpy(array).requires_grad_() for key, array in drawn(name).items()
    }
    weights = {key: Weight(value) for key, value in tensors.items()}
    return trained.trainable(methods.get(name), weights), tensors


def taps(op: Any) -> TensorTaps:
    arrays = given.arrays(TOKENS, BATCH, 1)
    return TensorTaps(op, {name: op.constant(arrays[name]) for name in ("x", "normed", "size")}, SITE)


@pytest.mark.parametrize("name", NEEDING)
def test_a_method_under_training_reduces_as_it_does_in_numpy(name: str) -> None:
    method, _ = under_training(name)
    found = method.reduce(own := TorchOps(), taps(own), SITE)
    numbers = NumpyOps()
    wanted = methods.get(name)(weights=drawn(name)).reduce(numbers, taps(numbers), SITE)  # type: ignore[call-arg]
    np.testing.assert_allclose(found.tokens.detach().numpy(), wanted.tokens, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(found.position.numpy(), wanted.position)
    np.testing.assert_array_equal(found.assign.numpy(), wanted.assign)
    assert (found.size is None) == (wanted.size is None)
    if wanted.size is not None:
        np.testing.assert_allclose(found.size.numpy(), wanted.size, rtol=1e-6)


@pytest.mark.parametrize("name", NEEDING)
def test_every_tensor_of_a_method_gets_a_gradient(name: str) -> None:
    method, tensors = under_training(name)
    op = TorchOps(0.5, torch.Generator().manual_seed(0))
    total = (method.reduce(op, taps(op), SITE).tokens ** 2).sum()
    if op.likelihood is not None:
        total = total + (torch.arange(1.0, BATCH + 1) * op.likelihood).sum()
    total.backward()
    # What a softmax over tokens adds to all of them alike decides nothing.
    silent = {"block0.slot_bias", "block0.linear_bias"}
    assert all(value.grad is not None for value in tensors.values())
    assert all(value.grad.abs().max() > 0 for key, value in tensors.items() if key not in silent)


@pytest.mark.parametrize("name", NEEDING)
def test_the_reduced_model_under_training_is_the_one_that_is_measured(
    name: str, tiny: Any, exported: Path, tmp_path: Path
) -> None:
    from tokenrt.passes.reduce import reduce

    pictures = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 1, 16, 16)).astype(np.float32))
    keep = {1: 11} if name in trained.ONE_SITE else {0: 14, 1: 11}
    places = {site.block: site for site in trained.sites(tiny, keep)}
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"block{block}.{key}": value
        for block, site in places.items()
        for key, value in trained.drawn_weights(methods.get(name), site, generator).items()
    }
    method = trained.trainable(methods.get(name), {key: Weight(value) for key, value in tensors.items()})
    found = trained.logits(tiny, method, trained.entering(tiny, pictures, min(keep)), places, TorchOps())
    np.savez(tmp_path / "weights.npz", **{key: value.numpy() for key, value in tensors.items()})
    reduce(
        exported,
        method=name,
        budget=Budget.tokens([*keep.values()], [*keep]),
        options={"weights": str(tmp_path / "weights.npz")},
        output=tmp_path / "reduced.onnx",
    )
    wanted = quality._answers(tmp_path / "reduced.onnx", pictures.numpy())
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dynamicvit", "patchmerger"])
def test_training_lowers_the_loss_and_repeats_itself(name: str, tiny: Any) -> None:
    pictures = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 1, 16, 16)).astype(np.float32))
    subject = Subject(tiny, 1, trained.entering(tiny, pictures, 1), tiny(pictures))
    arrays, losses = trained.train(name, subject, {1: 9}, steps=60)
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    again, repeated = trained.train(name, subject, {1: 9}, steps=60)
    assert losses == repeated
    assert all((again[key] == array).all() for key, array in arrays.items())


def test_counts_that_a_method_refuses_are_refused_in_training(tiny: Any) -> None:
    pictures = torch.zeros(8, 1, 16, 16)
    subject = Subject(tiny, 1, trained.entering(tiny, pictures, 1), tiny(pictures))
    with pytest.raises(PlanError, match="removing 4 of 17"):
        trained.train("cts", subject, {1: 13}, steps=1)


def test_weights_are_trained_once_for_each_reduction(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"a model")
    asked: list[Any] = []
    monkeypatch.setattr(digits, "model", lambda: tmp_path / "model.onnx")
    monkeypatch.setattr(trained, "subject", lambda block: block)
    monkeypatch.setattr(
        trained,
        "train",
        lambda name, given, keep, options: (
            asked.append((given, keep)) or ({"block3.queries": np.ones((1, 2))}, [1.0])
        ),
    )
    first = trained.weights("cropr", [33], [3])
    assert trained.weights("cropr", [33], [3]) == first
    assert trained.weights("cropr", [17], [3]) != first
    assert asked == [(3, {3: 33}), (3, {3: 17})]
    assert np.load(first)["block3.queries"].tolist() == [[1.0, 1.0]]


def test_a_gradient_never_ends_unnoticed() -> None:
    value = torch.ones(2, 3, 4, requires_grad=True)
    with pytest.raises(UnsupportedError, match="no gradient passes operator Tanh"):
        TorchOps()("Tanh", value)
    with pytest.raises(UnsupportedError, match="no gradient passes operator TokenCombine"):
        TorchOps()(
            "TokenCombine",
            value,
            np.ones((2, 3, 1)),
            np.zeros((2, 1), int),
            np.ones((2, 2), int),
            np.zeros((2, 2), int),
        )
    with pytest.raises(UnsupportedError, match=r"no gradient passes add\.reduce"):
        np.add.reduce(Weight(value))


def test_what_numpy_copies_of_a_weight_leads_back_to_it() -> None:
    value = torch.arange(6.0).reshape(2, 3).requires_grad_()
    found = tensor(np.ascontiguousarray(Weight(value).T)[1:, :, None])
    np.testing.assert_array_equal(found.detach().numpy(), np.arange(6.0).reshape(2, 3).T[1:, :, None])
    found.sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [[0, 1, 1], [0, 1, 1]]


def test_draws_mirror_each_other_and_pull_towards_what_was_better() -> None:
    score = torch.zeros(2, 8, requires_grad=True)
    op = TorchOps(1.0, torch.Generator().manual_seed(0))
    index = op("TokenSelect", score, keep=4, protect=0, order=0)
    assert not set(index[0].tolist()) & set(index[1].tolist())
    assert op.likelihood is not None
    # The first draw cost more than the second.
    (torch.tensor([1.0, -1.0]) * op.likelihood).sum().backward()
    assert score.grad is not None
    better = -score.grad.sum(0)
    assert better[index[1]].min() > better[index[0]].max()
