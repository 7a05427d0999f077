"""Evo-ViT: a whole network of twelve blocks, its running attention and its two selections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.golden.block import Block
from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method

SELECTIONS = (4, 8)
"""Blocks before which tokens are selected; the others wait until the next one, or the end."""


def blocks(arrays: Arrays, params: Mapping[str, Any]) -> list[Block]:
    """The blocks, whose parts lie in separate lists."""
    found = []
    for i in range(params["depth"]):
        parts = {
            "norm1": f"norms_{i}",
            "attn_proj": f"projs_{i}",
            **{name: f"blocks_{i}_{name}" for name in ("norm2", "mlp_fc1", "mlp_fc2")},
        }
        weights = {
            f"w_{name}_{kind}": arrays[f"w_{part}_{kind}"]
            for name, part in parts.items()
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            if f"w_qks_{i}_qk_{kind}" in arrays:
                halves = [arrays[f"w_qks_{i}_qk_{kind}"], arrays[f"w_vs_{i}_v_{kind}"]]
                weights[f"w_attn_qkv_{kind}"] = np.concatenate(halves)
        found.append(Block(weights, params["num_heads"], params["norm_eps"]))
    return found


@dataclass
class Run:
    """Tokens [B,N,C] in their own places, the places that are updated [B,1+K], and the attention of all so far."""

    tokens: Any
    slow: Any
    options: Mapping[str, Any]
    attention: Mapping[str, Any] = field(default_factory=dict)

    def block(self, block: Block) -> dict[str, Any]:
        """One block on the slow tokens; the method averages their class attention and selects from them."""
        x = np.take_along_axis(self.tokens, self.slow[..., None], axis=1)
        branch, taps = block.attend(x)
        x = block.feed_forward(x + branch)
        np.put_along_axis(self.tokens, self.slow[..., None], x, axis=1)
        before = {
            name: np.take_along_axis(value, self.slow, axis=1) for name, value in self.attention.items()
        }
        # Sums over heads, as recorded.
        rows = {"x": x, "cls_attn": taps["attn"][:, :, 0].sum(axis=1)}
        keep = min(self.options["keep"], x.shape[1] - 1)
        found = apply_method("evovit", rows, state=before, **{**self.options, "keep": keep})
        after = self.attention.get("global_attention", found["state_global_attention"]).copy()
        np.put_along_axis(after, self.slow, found["state_global_attention"], axis=1)
        self.attention = {"global_attention": after}
        return found

    def select(self) -> dict[str, Any]:
        """Select among all tokens by the attention so far, which is averaged with itself."""
        rows = {"x": self.tokens, "cls_attn": self.attention["global_attention"]}
        found = apply_method("evovit", rows, state=self.attention, **self.options)
        self.slow = found["index"]
        return found


def check_evovit(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Selections, the running attention behind them, the slow tokens, and what comes out."""
    batch, patches, channels = arrays["x"].shape
    first = np.broadcast_to(arrays["w_cls_token"], (batch, 1, channels))
    tokens = np.concatenate([first, arrays["x"]], axis=1).astype(np.float64) + arrays["w_pos_embed"]
    every = np.tile(np.arange(1 + patches), (batch, 1))
    options = {
        "keep": 1 + params["K"],
        "backend": backend,
        "tradeoff": params["tradeoff"],
        "order": "score",
    }
    run = Run(tokens, every, options)
    place = np.tile(np.arange(patches), (batch, 1))
    for number, block in enumerate(blocks(arrays, params)):
        if number in SELECTIONS:
            found = run.select()
            # Recorded orders number the tokens as the selection before left them.
            place = np.take_along_axis(place, arrays[f"order{number}"], axis=1)
            equal(f"selected before block {number}", found["index"][:, 1:] - 1, place[:, : params["K"]])
            close(f"tokens entering block {number}", found["tokens"], arrays[f"x{number}"])
            attention = np.take_along_axis(run.attention["global_attention"], 1 + place, axis=1)
            close(f"attention before block {number}", attention, arrays[f"cls_attn{number}"])
        run.block(block)
        if number + 1 in (*SELECTIONS, params["depth"]):
            run.slow = every
    last = Block(arrays, params["num_heads"], params["norm_eps"])
    close("mean of all patches", last.norm("norm", run.tokens[:, 1:].mean(axis=1)), arrays["y"])
    close("class token", run.tokens[:, 0], arrays["y_cls"])


CHECKS: Mapping[str, Check] = {"evovit": check_evovit}
