"""Evo-ViT's representative through a whole model, against the paper's procedure: block by block, in plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import zoo
from tests.helpers.tolerance import within_twice
from tests.passes.helpers.running import Variant, run, session
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

SITES = {0: 9, 2: 8}
"""Block -> tokens that go on behind it: the class token, those kept, and the representative."""

HALF = 0.5


def published(net: Any, image: Tensor) -> tuple[Tensor, float]:
    """One image: in every block the waiting tokens' mean joins the others, and what it gains is added to all of them."""
    x = net.norm_pre(net._pos_embed(net.patch_embed(image)))[0]
    everyone = torch.arange(len(x))
    slow, weight, attention, margin = everyone, None, None, float("inf")
    for number, block in enumerate(net.blocks):
        waiting = everyone[~torch.isin(everyone, slow)]
        rows = x[slow]
        if weight is not None:
            rows = torch.cat([rows, (weight[waiting] @ x[waiting])[None] / weight[waiting].sum()])
        row = class_row(block.attn, block.norm1(rows)[None])
        after = rows + block.ls1(block.attn(block.norm1(rows)[None])[0])
        after = after + block.ls2(block.mlp(block.norm2(after)))
        if weight is not None:
            x = x.index_add(0, waiting, (after[-1] - rows[-1]).expand(len(waiting), -1))
        x = x.index_copy(0, slow, after[: len(slow)])
        if number + 1 in SITES or number + 1 == len(net.blocks):
            slow, weight = everyone, None
        if number in SITES:
            attention = row if attention is None else (1 - HALF) * attention + HALF * row
            kept = SITES[number] - 2
            order = attention[1:].sort(descending=True)
            margin = min(margin, float(order.values[kept - 1] - order.values[kept]))
            slow = torch.cat([everyone[:1], 1 + order.indices[:kept].sort().values])
            weight = attention
    return head(net, x), margin


def class_row(attention: Any, rows: Tensor) -> Tensor:
    """What the class token gives to each token, mean over heads."""
    queries, keys, _ = (
        attention.qkv(rows)
        .reshape(1, rows.shape[1], 3, attention.num_heads, attention.head_dim)
        .permute(2, 0, 3, 1, 4)
    )
    queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    row: Tensor = (queries[:, :, :1] * attention.scale @ keys.transpose(-2, -1)).softmax(dim=-1).mean(dim=1)
    return row[0, 0]


def head(net: Any, x: Tensor) -> Tensor:
    made: Tensor = net.forward_head(net.norm(x[None]))
    return made


@pytest.mark.parametrize("name", ["timm_vit", "timm_vit_avg"])
def test_waiting_tokens_gain_what_their_representative_gains(name: str) -> None:
    entry = zoo.build(name)[0]
    reduced = reduce(
        Variant(name).path(),
        method="evovit",
        budget=Budget.tokens([*SITES.values()], [*SITES]),
        site="after-block",
        options={"variant": "paper"},
    )
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    found = run(session(reduced.model), {"pixel_values": images.numpy()})[0]
    answers = {}
    for kind in (torch.float64, torch.float32):
        net = entry.net.to(kind)
        with torch.no_grad():
            pairs = [published(net, image[None].to(kind)) for image in images]
        answers[kind] = torch.cat([answer for answer, _ in pairs]).numpy()
        assert min(margin for _, margin in pairs) > 1e-6
    entry.net.to(torch.float32)
    within_twice(found, answers[torch.float64], answers[torch.float32])
    plain = reduce(
        Variant(name).path(),
        method="evovit",
        budget=Budget.tokens([count - 1 for count in SITES.values()], [*SITES]),
        site="after-block",
    )
    other = run(session(plain.model), {"pixel_values": images.numpy()})[0]
    assert np.abs(found - other).max() > 1e-3
