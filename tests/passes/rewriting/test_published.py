"""Reduced models against the published mathematics in float64: at most twice the error the same formulas make in float32."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests import zoo
from tests.helpers.tolerance import within_twice
from tests.passes.helpers.published import DivPrune, EViT, Published, ToMe, forward
from tests.passes.helpers.running import Variant, dynamo, run
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

IMAGES = 8
NARROW = 1e-6  # fp32 rounding of a cosine or an attention is a tenth of this

PLAIN = ("timm_vit", "timm_vit_qk_norm", "timm_vit_layer_scale", "timm_vit_bias_free", "timm_vit_avg")
TOME = [
    *((Variant(name), 2) for name in PLAIN),
    (Variant("timm_vit_avg_no_class"), 2),
    (Variant("timm_deit_distilled"), 2),
    (Variant("timm_vit_registers"), 2),
    (Variant("timm_vit_patch8"), 8),
    (dynamo("timm_vit"), 4),
]
EVIT = [
    *((Variant(name), 0.7, (1, 2)) for name in PLAIN),
    (Variant("timm_vit_patch8"), 0.7, (0, 1, 3)),
    (dynamo("timm_vit"), 0.5, (1, 3)),
]


def identity(value: Any) -> str:
    return str(value) if isinstance(value, Variant) else ""


def images(count: int, size: int = 64, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def compare(net: Any, method: Published, pictures: torch.Tensor, found: Any) -> None:
    with torch.no_grad():
        plain, _ = forward(net, pictures, method)
        exact, margin = forward(net, pictures.double(), method)
    assert margin > NARROW, "these pictures leave a decision to rounding: take another seed"
    within_twice(found, exact.numpy(), plain.numpy())


@pytest.mark.parametrize(("variant", "remove"), TOME, ids=identity)
@pytest.mark.parametrize("proportional", [True, False], ids=["proportional", "plain"])
def test_tome(variant: Variant, remove: int, proportional: bool) -> None:
    net = zoo.build(variant.name)[0].net
    result = reduce(
        variant.path(), method="tome", budget=Budget.remove(remove), proportional_attention=proportional
    )
    pictures = images(IMAGES)
    (found,) = run(result.model, {"pixel_values": pictures.numpy()})
    compare(net, ToMe(remove, zoo.entry(variant.name).protected, proportional), pictures, found)


@pytest.mark.parametrize(("variant", "ratio", "layers"), EVIT, ids=identity)
def test_evit(variant: Variant, ratio: float, layers: tuple[int, ...]) -> None:
    net = zoo.build(variant.name)[0].net
    result = reduce(variant.path(), method="evit", budget=Budget.keep(ratio, layers))
    pictures = images(IMAGES)
    (found,) = run(result.model, {"pixel_values": pictures.numpy()})
    compare(net, EViT(ratio, layers), pictures, found)


@pytest.mark.parametrize(("variant", "ratio", "layers"), EVIT, ids=identity)
def test_divprune(variant: Variant, ratio: float, layers: tuple[int, ...]) -> None:
    net = zoo.build(variant.name)[0].net
    result = reduce(variant.path(), method="divprune", budget=Budget.keep(ratio, layers))
    pictures = images(IMAGES)
    (found,) = run(result.model, {"pixel_values": pictures.numpy()})
    compare(net, DivPrune(ratio, layers), pictures, found)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tome", "evit"])
def test_deit_small(method: str, tmp_path: Any) -> None:
    import timm

    torch.manual_seed(0)
    net = timm.create_model("deit_small_patch16_224").eval()
    for parameter in net.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    path = tmp_path / "deit.onnx"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(2, 3, 224, 224),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["pixel_values"],
            dynamic_axes={"pixel_values": {0: "batch"}},
        )
    budget = Budget.remove(13) if method == "tome" else Budget.keep(0.7, [3, 6, 9])
    result = reduce(path, method=method, budget=budget)
    pictures = images(2, 224)
    (found,) = run(result.model, {"pixel_values": pictures.numpy()})
    compare(net, ToMe(13, 1) if method == "tome" else EViT(0.7, (3, 6, 9)), pictures, found)
