"""Small methods that leave and come back in every way, for tests of the whole-model rewrite, and the same in plain torch."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.passes.helpers.published import attention
from tokenrt.passes import methods
from tokenrt.passes.methods import pruning

WHEN = ("never", "before-last-block", "before-next-site", "after-attention")
SHORT = dict(zip(WHEN, ("stay", "last", "next", "around"), strict=True))

SOURCE = '''
from dataclasses import dataclass

import numpy as np

from tokenrt.passes.methods.parts import steps
from tokenrt.passes.methods.contract import Method, Reduction

SEEN = []


@dataclass(frozen=True)
class Strong(Method):
    """Keep the tokens that are longest, or that point most along the mean token of the site before."""

    name = "strong"
    summary, paper, reads, drops = "longest tokens stay", "none", ("tokens",), True
    evidence = "mathematics"
    spread: bool = False

    def reduce(self, op, taps, site):
        SEEN.append(site)
        x = op("Cast", taps.tokens, to=1)
        mean = op("Mul", op("ReduceSum", x, np.array([1]), keepdims=1), 1 / site.tokens)
        other = taps.state.get("mean", x)
        score = op("ReduceSum", op("Mul", x, other), np.array([-1]), keepdims=0)
        index = op("TokenSelect", score, keep=site.keep, protect=site.protect, order=0)
        made = steps.pruned(op, taps, site, index)
        affinity = None
        if self.spread:
            kept = op("Transpose", op("Cast", made.tokens, to=1), perm=[0, 2, 1])
            affinity = op("Softmax", op("Mul", op("MatMul", x, kept), 0.1), axis=-1)
        return Reduction(made.tokens, made.size, made.position, made.assign, affinity, {"mean": mean})


@dataclass(frozen=True)
class Pairs(Method):
    """Neighbours become their size-weighted mean, from the first unprotected token on."""

    name = "pairs"
    summary, paper, reads, merges = "neighbours merge", "none", ("tokens",), True
    evidence = "mathematics"

    def reduce(self, op, taps, site):
        SEEN.append(site)
        slots = np.arange(site.tokens)
        for pair in range(site.removed):
            slots[site.protect + 2 * pair + 1 :] -= 1
        size = steps.ones(op, taps.tokens, site) if taps.size is None else taps.size
        members = (slots[None] == np.arange(site.keep)[:, None])[None].astype(np.float32)
        weight = op("Max", size, 1e-20)
        total = op("MatMul", members, op("Mul", op("Cast", taps.tokens, to=1), weight))
        mean = op("CastLike", op("Div", total, op("MatMul", members, weight)), taps.tokens)
        first = np.array([[np.flatnonzero(slots == slot)[0] for slot in range(site.keep)]])
        return Reduction(mean, op("MatMul", members, size), op.constant(first), op.constant(slots[None]))

    def fewest(self, tokens, protect):
        return tokens - (tokens - protect) // 2


'''
CLASS = """
@dataclass(frozen=True)
class {base}{title}({base}):
    name, returns = "{kind}_{short}", "{when}"
"""


@contextmanager
def registered(folder: Path) -> Iterator[Any]:
    """The methods strong_stay, strong_last, strong_next, strong_around and pairs_... for a while; gives their module."""
    module = f"probes_{next(COUNT)}"
    text = SOURCE
    for base, when in itertools.product(("Strong", "Pairs"), WHEN):
        text += CLASS.format(
            base=base, kind=base.lower(), title=SHORT[when].title(), short=SHORT[when], when=when
        )
    (folder / f"{module}.py").write_text(text)
    paths = [*pruning.__path__]
    pruning.__path__.append(str(folder))
    methods._registry.cache_clear()
    try:
        methods.names()
        yield importlib.import_module(f"{pruning.__name__}.{module}")
    finally:
        pruning.__path__[:] = paths
        methods._registry.cache_clear()


COUNT = itertools.count()


@dataclass
class Line:
    """One image's tokens on their way: x [K,C], sizes [K], what left so far, the last site's mean, what entered the block.

    metric [K,D] and received [K]: the mean key of each, and the attention it got, in the last attention.
    stands [K]: where in the sequence before it each token stands that the last reduction left, if it says so.
    """

    x: Tensor
    sizes: Tensor
    left: list[tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=list)
    mean: Tensor | None = None
    margin: float = float("inf")
    stream: Tensor | None = None
    metric: Tensor | None = None
    received: Tensor | None = None
    stands: Tensor | None = None

    def back(self, x: Tensor) -> Tensor:
        """All tokens again: copies of what they merged into, as they were when dropped, or spread."""
        for assign, before, affinity in reversed(self.left):
            kept = torch.where((assign >= 0)[:, None], x[assign.clamp(min=0)], before)
            x = kept if affinity is None else affinity @ x
        self.left, self.sizes = [], x.new_ones(len(x))
        return x


@dataclass(frozen=True)
class Strong:
    """The method of this name."""

    protect: int
    spread: bool = False
    proportional: bool = False

    def __call__(self, line: Line, x: Tensor, keep: int) -> Tensor:
        score = (x * (x if line.mean is None else line.mean)).sum(dim=1)
        line.mean = x.mean(dim=0)
        free = score[self.protect :].sort(descending=True)
        count = keep - self.protect
        line.margin = min(line.margin, float(free.values[count - 1] - free.values[count]))
        index = torch.cat([torch.arange(self.protect), free.indices[:count].sort().values + self.protect])
        assign = torch.full((len(x),), -1)
        assign[index] = torch.arange(keep)
        affinity = (x @ x[index].T * 0.1).softmax(dim=-1) if self.spread else None
        line.left.append((assign, x, affinity))
        line.sizes = line.sizes[index]
        return x[index]


@dataclass(frozen=True)
class Pairs:
    """The method of this name."""

    protect: int
    proportional: bool = True

    def __call__(self, line: Line, x: Tensor, keep: int) -> Tensor:
        groups = [[token] for token in range(self.protect)]
        free = list(range(self.protect, len(x)))
        for _ in range(len(x) - keep):
            groups.append([free.pop(0), free.pop(0)])
        groups += [[token] for token in free]
        assign = torch.empty(len(x), dtype=torch.int64)
        merged, sizes = [], []
        for slot, members in enumerate(groups):
            assign[members] = slot
            weight = line.sizes[members]
            merged.append((x[members] * weight[:, None]).sum(dim=0) / weight.sum())
            sizes.append(weight.sum())
        line.left.append((assign, x, None))
        line.sizes = torch.stack(sizes)
        return torch.stack(merged)


def forward(
    net: Any, images: Tensor, method: Strong | Pairs, when: str, where: str, plan: dict[int, int]
) -> tuple[Tensor, float]:
    """Outputs of a timm VisionTransformer whose tokens leave at the blocks of `plan` (block -> K), and the smallest margin."""
    net = net.to(images.dtype)
    results = [_one(net, image[None], method, when, where, plan) for image in images]
    return torch.cat([output for output, _ in results]), min(margin for _, margin in results)


def _one(
    net: Any, image: Tensor, method: Strong | Pairs, when: str, where: str, plan: dict[int, int]
) -> tuple[Tensor, float]:
    x = net.norm_pre(net._pos_embed(net.patch_embed(image)))[0]
    line = Line(x, x.new_ones(len(x)))
    for number, block in enumerate(net.blocks):
        last = number == len(net.blocks) - 1
        if (when == "before-last-block" and last) or (when == "before-next-site" and number in plan):
            x = line.back(x)
        h, here = block.norm1(x), where if number in plan else ""
        if here == "around-attention":
            h = method(line, h, plan[number])
        attended, _, _ = attention(block.attn, h, line.sizes, method.proportional)
        if here == "around-attention":
            attended = line.back(attended)
        x = x + block.ls1(attended)
        if here == "after-attention":
            x = method(line, x, plan[number])
        x = x + block.ls2(block.mlp(block.norm2(x)))
        if here == "after-block":
            x = method(line, x, plan[number])
    if when == "before-next-site":
        x = line.back(x)
    x = net.norm(x)
    if net.global_pool == "avg":
        weights = line.sizes[net.num_prefix_tokens :]
        pooled = (x[net.num_prefix_tokens :] * weights[:, None]).sum(dim=0) / weights.sum()
        return net.head(net.fc_norm(pooled))[None], line.margin
    return net.forward_head(x[None]), line.margin
