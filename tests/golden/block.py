"""A transformer block in NumPy float64, from recorded weights: what the vectors of whole blocks need around a method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Block:
    """A pre-norm block; `arrays` holds w_norm1_weight, w_attn_qkv_weight [3C,C] and so on, dots written as underscores."""

    arrays: Mapping[str, Any]
    heads: int
    eps: float

    def attend(self, x: Any, size: Any | None = None) -> tuple[Any, dict[str, Any]]:
        """Return the attention branch [B,N,C] and its taps; `size` [B,N,1] adds log sizes to the logits."""
        batch, tokens, channels = x.shape
        split = (batch, tokens, 3, self.heads, channels // self.heads)
        qkv = self._linear("attn_qkv", self.norm("norm1", x)).reshape(split).transpose(2, 0, 3, 1, 4)
        queries, keys, values = qkv
        logits = queries @ keys.transpose(0, 1, 3, 2) * queries.shape[-1] ** -0.5
        if size is not None:
            logits = logits + np.log(size).transpose(0, 2, 1)[:, None]
        weight = np.exp(logits - logits.max(-1, keepdims=True))
        attn = weight / weight.sum(-1, keepdims=True)
        branch = (attn @ values).transpose(0, 2, 1, 3).reshape(x.shape)
        return self._linear("attn_proj", branch), {"queries": queries, "keys": keys, "attn": attn}

    def feed_forward(self, x: Any) -> Any:
        """Return the block's output from the tokens after the reduction."""
        hidden = self._linear("mlp_fc1", self.norm("norm2", x))
        gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        return x + self._linear("mlp_fc2", gelu)

    def _linear(self, name: str, x: Any) -> Any:
        bias = self.arrays.get(f"w_{name}_bias")
        out = x @ self.arrays[f"w_{name}_weight"].T.astype(np.float64)
        return out if bias is None else out + bias

    def norm(self, name: str, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        return unit * self.arrays[f"w_{name}_weight"] + self.arrays[f"w_{name}_bias"]
