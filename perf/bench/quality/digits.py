"""A small vision transformer trained on scikit-learn's digits: trained quality without a download.

1,797 handwritten digits of 8 x 8 pixels, brought to 32 x 32; patches of 4 give 64 tokens and the class token. Training
takes a minute or two on two cores and is seeded; the model is kept in the cache and made again when it is not there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.perf.bench.models import cache

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tokenrt.perf.demo.subject import Array

SIDE, PATCH, WIDTH, BLOCKS, HEADS = 32, 4, 64, 6, 4
EPOCHS, BATCH, RATE, DECAY, SHIFT = 40, 64, 2e-3, 0.05, 2
TESTED = 450
"""Digits held back, the same every time."""

LEAST = 0.97
"""Accuracy below which the model is no measure of anything."""

VERSION = 1
"""Raise it when a constant above changes, so that an older model in the cache is not taken for this one."""


def data() -> tuple[Array, Array, Array, Array]:
    """Pictures [n,1,32,32] float32 in -1 .. 1 and labels [n], first for training, then for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DependencyError("scikit-learn", "dev", "the digits benchmark") from None
    digits = load_digits()
    pictures = digits.images.astype(np.float32) / 8 - 1
    larger = _bilinear(pictures, SIDE)[:, None]
    order = np.random.default_rng(0).permutation(len(larger))
    train, test = order[TESTED:], order[:TESTED]
    return larger[train], digits.target[train], larger[test], digits.target[test]


def _bilinear(pictures: Array, side: int) -> Array:
    """Pictures [n,h,h] at side x side, by linear interpolation between the centres of pixels."""
    length = pictures.shape[1]
    at = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
    low = np.minimum(at.astype(int), length - 2)
    weight = np.zeros((side, length), np.float32)
    weight[np.arange(side), low] = 1 - (at - low)
    weight[np.arange(side), low + 1] = at - low
    return weight @ pictures @ weight.T


def model() -> Path:
    """The trained model as ONNX, trained on the first call. Raises: TokenrtError below 97 % accuracy."""
    path = cache() / "bench" / f"digits-vit-{VERSION}.onnx"
    if not path.exists():
        from tokenrt.export import export

        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"training a vision transformer on digits for {path}", file=sys.stderr)
        export(f"{__file__}:trained", path)
    return path


def network() -> Any:
    """The trained model as a module of timm's, its weights read from the file: frozen, for what is trained around it."""
    import onnx
    import torch
    from onnx import numpy_helper

    graph, prefix = onnx.load(model()).graph, "module."
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    products = {node.output[0]: arrays.get(node.input[1]) for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        # The exporter stores the weight of a product transposed and without its name; the bias behind it has one.
        product, bias = products.get(node.input[0]), node.input[-1].removeprefix(prefix)
        if product is not None and bias in found:
            found[bias.removesuffix("bias") + "weight"] = product.T
    net = _module().eval().requires_grad_(False)
    net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in found.items()})
    return net


def trained() -> tuple[nn.Module, Tensor]:
    """The module after training, and two pictures."""
    import torch
    from torch.nn import functional

    pictures, labels, tested, wanted = (torch.from_numpy(array) for array in data())
    torch.manual_seed(0)
    net = _module()
    steps = EPOCHS * (len(pictures) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for epoch in range(EPOCHS):
        for part in torch.randperm(len(pictures))[: steps // EPOCHS * BATCH].reshape(-1, BATCH):
            loss = functional.cross_entropy(net(_shifted(pictures[part])), labels[part])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {float(loss):.4f}", file=sys.stderr)
    net.eval()
    with torch.no_grad():
        accuracy = float((net(tested).argmax(1) == wanted).float().mean())
    print(f"accuracy on {TESTED} digits held back: {accuracy:.4f}", file=sys.stderr)
    if accuracy < LEAST:
        raise TokenrtError(f"training reached {accuracy:.4f} on the digits held back, less than {LEAST}")
    return net, tested[:2]


def _module() -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=SIDE, patch_size=PATCH, in_chans=1, num_classes=10, embed_dim=WIDTH, depth=BLOCKS, num_heads=HEADS,
        mlp_ratio=2,
    )  # fmt: skip


def _shifted(pictures: Tensor) -> Tensor:
    """Each picture moved by up to SHIFT pixels, so that few examples go further."""
    import torch
    from torch.nn import functional

    padded = functional.pad(pictures, (SHIFT,) * 4, value=-1)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, len(pictures))).tolist()
    rows = [
        picture[:, top : top + SIDE, left : left + SIDE]
        for picture, top, left in zip(padded, down, right, strict=True)
    ]
    return torch.stack(rows)
