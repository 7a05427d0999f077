"""Weights for the methods that need some: trained around the frozen digits model, for the sites of one reduction.

What is trained is the method itself, as it was written, on torch tensors: there is no second one for training. The loss is
the mean squared difference of the logits from those of the unreduced model, so nothing but pictures is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import isqrt, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.files import atomic
from tokenrt.passes import methods
from tokenrt.passes.methods.apply import restored
from tokenrt.passes.methods.contract import Method, Reduction, Site
from tokenrt.passes.methods.tensors import TensorTaps
from tokenrt.perf.bench.journal import digest
from tokenrt.perf.bench.method_models import length
from tokenrt.perf.bench.models import cache as kept
from tokenrt.perf.bench.quality import digits, torch_ops
from tokenrt.perf.bench.quality.torch_ops import TorchOps, Weight
from tokenrt.perf.demo.subject import version

if TYPE_CHECKING:
    from torch import Generator, Tensor

STEPS, PAIRS, RATE = 150, 32, 2e-2
"""Steps of Adam, pictures of each (all twice, with draws that mirror each other), and the rate it starts at."""

SPREAD = 0.5
"""Standard deviation of draws around the scores; weights start so that scores are about one apart."""

HIDDEN = 16
"""Width of hidden layers and embeddings whose width no tensor of the model sets."""

ONE_SITE = frozenset({"cropr", "cts", "msvit", "patchmerger", "sinkhorn", "sit", "tore"})
"""Methods made for one place: they need the whole grid there, a tensor as long as K, or bring tokens back late."""

TOLD = (
    f"trained for each table cell with the model frozen, on the training digits, in {STEPS} steps of {PAIRS} pictures, "
    "to keep the logits of the unreduced model (mean squared difference)"
)


@dataclass(frozen=True)
class Subject:
    """The frozen model, what enters one of its blocks for every training picture, and its own logits for each."""

    net: Any
    block: int
    entry: Tensor
    logits: Tensor


@cache
def subject(block: int) -> Subject:
    """The digits model with its training pictures on the doorstep of a block."""
    import torch

    net, pictures = digits.network(), torch.from_numpy(digits.data()[0])
    return Subject(net, block, entering(net, pictures, block), net(pictures))


def entering(net: Any, pictures: Tensor, block: int) -> Tensor:
    """What enters a block: [B,N,C]."""
    tokens: Tensor = net._pos_embed(net.patch_embed(pictures))
    for earlier in net.blocks[:block]:
        tokens = earlier(tokens)
    return tokens


def weights(
    name: str, counts: Sequence[int], layers: Sequence[int], options: Mapping[str, Any] | None = None
) -> Path:
    """The weights file of a method for these sites, trained on the first call. Raises: TokenrtError when it refuses them."""
    told = f"{name} {sorted((options or {}).items())} {[*counts]} {[*layers]} torch {version('torch')}"
    made_by = (torch_ops.__name__, __name__, methods.get(name).__module__)
    code = [Path(str(sys.modules[module].__file__)) for module in made_by]
    path = kept() / "bench" / "trained" / f"{name}-{digest(digits.model(), *code, told)[:16]}.npz"
    if not path.exists():
        arrays, losses = train(
            name, subject(min(layers)), dict(zip(layers, counts, strict=True)), options=options
        )
        few = max(len(losses) // 10, 1)
        first, last = (float(np.mean(part)) for part in (losses[:few], losses[-few:]))
        print(
            f"{name} trained for {counts[-1]} tokens: loss {first:.3f} -> {last:.3f}",
            file=sys.stderr,
            flush=True,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
    return path


def train(
    name: str,
    given: Subject,
    keep: Mapping[int, int],
    steps: int = STEPS,
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[float]]:
    """Train a method to leave `keep` tokens behind blocks: its tensors by name, and the loss at every step."""
    import torch

    places = {site.block: site for site in sites(given.net, keep)}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"block{block}.{key}": drawn.requires_grad_()
        for block, site in places.items()
        for key, drawn in drawn_weights(methods.get(name), site, generator).items()
    }
    method = trainable(methods.get(name), {key: Weight(value) for key, value in tensors.items()}, options)
    optimizer = torch.optim.Adam(tensors.values(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        part = torch.randint(0, len(given.entry), (PAIRS,), generator=generator).repeat(2)
        op = TorchOps(SPREAD, generator)
        off = logits(given.net, method, given.entry[part], places, op) - given.logits[part]
        loss = (off * off).mean(1)
        losses.append(float(loss.detach().mean()))
        total = loss.mean()
        if op.likelihood is not None:
            first, second = loss.detach().chunk(2)
            total = total + (torch.cat([first - second, second - first]) / 2 * op.likelihood).mean()
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        lost = [key for key, value in tensors.items() if value.grad is None]
        if lost:
            raise TokenrtError(f"method {name!r} cannot be trained: no gradient reaches {', '.join(lost)}")
        optimizer.step()
        schedule.step()
    return {key: value.detach().numpy() for key, value in tensors.items()}, losses


def sites(net: Any, keep: Mapping[int, int]) -> Iterator[Site]:
    """The constants of every place of reduction of the model; the class token is protected."""
    attention, initial = net.blocks[0].attn, int(net.pos_embed.shape[1])
    side, arriving = isqrt(initial - 1), initial
    for block, count in keep.items():
        yield Site(
            arriving, count, 1, attention.num_heads, attention.head_dim, block, len(net.blocks), initial=initial,
            grid=(side, side) if arriving == initial else None, channels=net.embed_dim,
        )  # fmt: skip
        arriving = count


def drawn_weights(method: type[Method], site: Site, generator: Generator) -> dict[str, Tensor]:
    """Where training starts: no bias, norms and scales of one, products that keep variances."""
    import torch

    letters = {"C": site.channels or 0, "K": site.keep - site.protect, "M": HIDDEN}
    found = {}
    for name, shape in method.needs.items():
        dims = [length(part, letters) for part in shape.split(",")]
        if name.endswith("bias"):
            found[name] = torch.zeros(dims)
        elif len(dims) == 1 or "norm" in name:
            found[name] = torch.ones(dims)
        else:
            found[name] = torch.randn(dims, generator=generator) * prod(dims[1:]) ** -0.5
    return found


def trainable(
    method: type[Method], tensors: Mapping[str, Weight], options: Mapping[str, Any] | None = None
) -> Method:
    """The method with tensors under training for weights; it gets them as they are, not as arrays."""

    def tensor(self: Any, name: str, site: Site) -> Weight:
        found: Weight = self.weights[f"block{site.block}.{name}"]
        return found

    made: Method = type(f"{method.__name__}InTraining", (method,), {"tensor": tensor})(
        weights=tensors, **(options or {})
    )
    return made


def logits(net: Any, method: Method, tokens: Tensor, places: Mapping[int, Site], op: TorchOps) -> Tensor:
    """The answers of the reduced model to what enters the block of its first site: [B,N,C] -> [B,classes]."""
    size: Tensor | None = None
    state: Mapping[str, Tensor] = {}
    trail: list[tuple[Tensor, Reduction, Site]] = []
    for number, block in enumerate(net.blocks[min(places) :], min(places)):
        if method.returns == "before-last-block" and block is net.blocks[-1]:
            for before, made, site in reversed(trail):
                tokens = restored(op, before, replace(made, tokens=tokens), site)
        normed = block.norm1(tokens)
        tokens = tokens + _attention(block.attn, normed, size if method.proportional else None)
        if number in places:
            tensors = {"x": tokens, "normed": normed} | ({} if size is None else {"size": size})
            made = method.reduce(op, TensorTaps(op, tensors, places[number], state), places[number])
            trail.append((tokens, made, places[number]))
            tokens, size, state = made.tokens, made.size, made.state
        tokens = tokens + block.mlp(block.norm2(tokens))
    found: Tensor = net.forward_head(net.norm(tokens))
    return found


def _attention(layer: Any, tokens: Tensor, size: Tensor | None) -> Tensor:
    """An attention of the model, proportional where tokens [B,N,C] have sizes [B,N,1]."""
    from torch.nn import functional

    query, key, value = layer.qkv(tokens).unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    bias = None if size is None else size.log()[:, None].transpose(2, 3)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    found: Tensor = layer.proj(mixed.transpose(1, 2).flatten(2))
    return found
