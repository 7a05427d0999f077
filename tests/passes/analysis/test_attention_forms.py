"""One attention written in many ways: each is found, and each method gives what the same weights give cut by hand in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.passes.helpers.published import EViT, ToMe
from tests.passes.helpers.running import run
from tests.passes.helpers.streams import traced
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

TOKENS, CHANNELS, HEADS, WIDTH = 9, 16, 4, 4
SCALE = WIDTH**-0.5
Form = Callable[[Tensor, Tensor, Tensor, "Tensor | None", int], Tensor]
"""Queries, keys and values [B,N,H,D] a mask [B,1,1,N] (or None) and B to the result [B,N,H*D]."""


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    scores = q @ k.transpose(-1, -2) * SCALE
    scores = scores if mask is None else scores + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, TOKENS, CHANNELS)


def _einsum(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * SCALE
    scores = scores if mask is None else scores + mask
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(batch, TOKENS, CHANNELS)


def _einsum_keys_first(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    scores = torch.einsum("bjhd,bihd->bhij", k, q * SCALE)
    scores = scores if mask is None else scores + mask
    return torch.einsum("bjhd,bhij->bihd", v, scores.softmax(-1)).reshape(batch, TOKENS, CHANNELS)


def _einsum_heads_last(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    scores = torch.einsum("bihd,bjhd->bijh", q, k) * SCALE
    scores = scores if mask is None else scores + mask.permute(0, 2, 3, 1)
    return torch.einsum("bijh,bjhd->bihd", scores.softmax(2), v).reshape(batch, TOKENS, CHANNELS)


def _keys_by_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    q, k, v = (part.permute(0, 2, 3, 1) for part in (q, k, v))
    scores = k.transpose(-1, -2) @ q * SCALE
    scores = scores if mask is None else scores + mask.transpose(-1, -2)
    return (v @ scores.softmax(-2)).reshape(batch, CHANNELS, TOKENS).transpose(1, 2)


def _values_first(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    q, k, v = (part.permute(0, 2, 3, 1) for part in (q, k, v))
    scores = q.transpose(-1, -2) @ k * SCALE
    scores = scores if mask is None else scores + mask
    return (v @ scores.softmax(-1).transpose(-1, -2)).reshape(batch, CHANNELS, TOKENS).transpose(1, 2)


def _five_axes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    q, k, v = (part[:, None].transpose(2, 3) for part in (q, k, v))
    scores = q @ k.transpose(-1, -2) * SCALE
    scores = scores if mask is None else scores + mask[:, None]
    return (scores.softmax(-1) @ v).transpose(2, 3).reshape(batch, TOKENS, CHANNELS)


def _viewed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    q, k, v = (part.transpose(1, 2).reshape(batch * HEADS, TOKENS, WIDTH) for part in (q, k, v))
    scores = torch.bmm(q * SCALE, k.transpose(1, 2))
    if mask is not None:
        scores = scores.view(batch, HEADS, TOKENS, TOKENS) + mask
        scores = scores.view(batch * HEADS, TOKENS, TOKENS)
    result = torch.bmm(scores.softmax(-1), v)
    return result.view(batch, HEADS, TOKENS, WIDTH).transpose(1, 2).reshape(batch, TOKENS, CHANNELS)


def _added_by_baddbmm(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    q, k, v = (part.transpose(1, 2).reshape(batch * HEADS, TOKENS, WIDTH) for part in (q, k, v))
    bias = q.new_zeros(batch, 1, 1, TOKENS) if mask is None else mask
    bias = bias.expand(batch, HEADS, 1, TOKENS).reshape(batch * HEADS, 1, TOKENS)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=1.0, alpha=SCALE)
    weights = scores.view(batch, HEADS, TOKENS, TOKENS).softmax(-1).view(batch * HEADS, TOKENS, TOKENS)
    result = torch.bmm(weights, v)
    return result.view(batch, HEADS, TOKENS, WIDTH).transpose(1, 2).reshape(batch, TOKENS, CHANNELS)


def _logarithms(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    scores = q @ k.transpose(-1, -2) * SCALE
    scores = scores if mask is None else scores + mask
    return (functional.log_softmax(scores, -1).exp() @ v).transpose(1, 2).reshape(batch, TOKENS, CHANNELS)


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    scores = q @ k.transpose(-1, -2) * SCALE
    scores = scores if mask is None else scores + mask
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    return (powers / powers.sum(-1, keepdim=True) @ v).transpose(1, 2).reshape(batch, TOKENS, CHANNELS)


def _written_out_over_keys(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    q, k, v = (part.permute(0, 2, 3, 1) for part in (q, k, v))
    scores = k.transpose(-1, -2) @ q * SCALE
    scores = scores if mask is None else scores + mask.transpose(-1, -2)
    powers = scores.exp()
    weights = powers * powers.sum(-2, keepdim=True).reciprocal()
    return (v @ weights).reshape(batch, CHANNELS, TOKENS).transpose(1, 2)


FORMS: dict[str, Form] = {
    "plain": _plain,
    "einsum": _einsum,
    "einsum, keys first": _einsum_keys_first,
    "einsum, heads last": _einsum_heads_last,
    "keys by queries": _keys_by_queries,
    "values first": _values_first,
    "five axes": _five_axes,
    "viewed": _viewed,
    "baddbmm": _added_by_baddbmm,
    "logarithms": _logarithms,
    "written out": _written_out,
    "written out, over keys": _written_out_over_keys,
}


EVERY = [
    *((form, False) for form in FORMS),
    *((form, True) for form in ("plain", "einsum", "keys by queries")),
]
"""Each form with channels as (h d), some as (d h); there are as many heads as a head has channels."""


class Block(nn.Module):
    """A pre-norm block; `within`: channels stand as (d h), heads last."""

    def __init__(self, form: str, within: bool = False) -> None:
        super().__init__()
        self.form, self.within = form, within
        self.n1, self.n2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.q, self.k, self.v, self.p = (nn.Linear(CHANNELS, CHANNELS) for _ in range(4))
        self.up, self.down = nn.Linear(CHANNELS, 32), nn.Linear(32, CHANNELS)

    def parts(self, x: Tensor) -> list[Tensor]:
        made = [layer(self.n1(x)) for layer in (self.q, self.k, self.v)]
        batch, tokens, _ = x.shape
        if self.within:
            return [part.reshape(batch, tokens, WIDTH, HEADS).transpose(2, 3) for part in made]
        return [part.reshape(batch, tokens, HEADS, WIDTH) for part in made]

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(self.n2(x))))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.p(FORMS[self.form](*self.parts(x), mask, x.shape[0]))
        return x + self.mlp(x)


class Net(nn.Module):
    """A class token, eight tokens and two blocks; the class token is read."""

    def __init__(self, form: str, within: bool = False) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, CHANNELS))
        self.pos = nn.Parameter(torch.randn(1, TOKENS, CHANNELS))
        self.blocks = nn.ModuleList(Block(form, within) for _ in range(2))

    def start(self, x: Tensor) -> Tensor:
        return torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        mask = None if keys is None else keys[:, None, None, :]
        x = self.start(x)
        for block in self.blocks:
            x = block(x, mask)
        return x[:, 0]


def net(form: str, within: bool = False) -> Net:
    torch.manual_seed(3)
    made = Net(form, within).eval()
    for weight in made.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=1.2 / math.sqrt(weight.shape[1]))
    return made


def given(masked: bool) -> tuple[Tensor, ...]:
    made = torch.Generator().manual_seed(5)
    x = torch.randn(3, TOKENS - 1, CHANNELS, generator=made)
    return (x, torch.randn(3, TOKENS, generator=made)) if masked else (x,)


@cache
def exported(form: str, masked: bool = False, within: bool = False) -> onnx.ModelProto:
    return traced(net(form, within), given(masked), ["x", "keys"][: 1 + masked])


def feeds(masked: bool = False) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in zip(("x", "keys"), given(masked), strict=False)}


@torch.no_grad()
def by_hand(
    model: Net,
    method: Callable[..., tuple[Tensor, Tensor, float]],
    masked: bool = False,
    proportional: bool = False,
) -> np.ndarray:
    """The network in its plain form, one image at a time, tokens leaving between attention and MLP."""
    results = []
    x, *rest = given(masked)
    for image in range(len(x)):
        tokens = model.start(x[image : image + 1])[0]
        bias = rest[0][image] if rest else torch.zeros(1)
        sizes = torch.ones(TOKENS)
        for number, block in enumerate(model.blocks):
            q, k, v = (part[0].transpose(0, 1) for part in block.parts(tokens[None]))
            logits = q @ k.transpose(1, 2) * SCALE + bias
            weights = (logits + sizes.log() if proportional else logits).softmax(-1)
            mixed = (weights @ v).transpose(0, 1).flatten(1)
            tokens = tokens + block.p(mixed)
            before = len(tokens)
            tokens, sizes, _ = (
                method(tokens, q, k, sizes, number) if not masked else method(tokens, weights, bias)
            )
            if masked:
                bias = sizes
                sizes = torch.ones(len(tokens))
            assert len(tokens) < before or number
            tokens = tokens + block.mlp(tokens)
        results.append(tokens[0])
    return torch.stack(results).detach().numpy()


def sliced(keep: tuple[int, int]) -> Callable[..., tuple[Tensor, Tensor, float]]:
    return lambda tokens, q, k, sizes, number: (tokens[: keep[number]], sizes[: keep[number]], 0.0)


def kept_by_class(keep: int) -> Callable[..., tuple[Tensor, Tensor, float]]:
    """Top-K by class attention, the keys' own bias kept beside them; once."""

    def step(tokens: Tensor, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, float]:
        if len(tokens) < TOKENS:
            return tokens, bias, 0.0
        score = weights[:, 0].mean(0)
        best = score[1:].topk(keep - 1).indices + 1
        index = torch.cat([torch.zeros(1, dtype=torch.int64), best.sort().values])
        return tokens[index], bias[index], 0.0

    return step


def reduced(
    model: onnx.ModelProto, method: str, counts: list[int] | None = None, **options: object
) -> ir.Model:
    budget = Budget.tokens(counts) if counts else Budget.remove(2)
    return reduce(ir.from_proto(model), method=method, budget=budget, **options).model  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "within"), EVERY)
def test_every_form_is_two_blocks_and_stays_what_it_was(form: str, within: bool) -> None:
    model = exported(form, within=within)
    seen = inspect(ir.from_proto(model))
    assert [(block.heads, block.width, block.tokens) for block in seen.blocks] == [(HEADS, WIDTH, TOKENS)] * 2
    assert not seen.refusals
    same = reduce(ir.from_proto(model), method="tome", budget=Budget.remove(0), allow_noop=True).model
    assert np.abs(run(same, feeds())[0] - run(model, feeds())[0]).max() < 1e-5


@pytest.mark.parametrize(("form", "within"), EVERY)
def test_slice_tome_and_evit_are_those_of_torch(form: str, within: bool) -> None:
    model, own = exported(form, within=within), net("plain", within)
    wanted = by_hand(own, sliced((7, 5)))
    assert np.abs(run(reduced(model, "slice", [7, 5]), feeds())[0] - wanted).max() < 1e-5
    wanted = by_hand(own, ToMe(2, 1), proportional=True)
    assert np.abs(run(reduced(model, "tome"), feeds())[0] - wanted).max() < 1e-5
    wanted = by_hand(own, EViT(0.6, (0,)))
    made = reduce(ir.from_proto(model), method="evit", budget=Budget.remove(2, [0])).model
    assert np.abs(run(made, feeds())[0] - wanted).max() < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_topk_with_a_mask_reads_the_scores_the_model_has(form: str) -> None:
    model = exported(form, masked=True)
    wanted = by_hand(net("plain"), kept_by_class(6), masked=True)
    made = reduce(ir.from_proto(model), method="topk", budget=Budget.remove(3, [0])).model
    assert np.abs(run(made, feeds(masked=True))[0] - wanted).max() < 1e-5
