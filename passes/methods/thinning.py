"""Run one method on a cache given as arrays: which entries of each head stay, and their keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Ops, Site, Value
from tokenrt.passes.methods.parts import cache, steps
from tokenrt.passes.methods.parts.cache import CacheMethod
from tokenrt.passes.methods.running import run, whole
from tokenrt.passes.methods.tensors import CACHE, TensorTaps, checked
from tokenrt.passes.ops.contract import Array


@dataclass(frozen=True)
class CacheTaps(TensorTaps):
    """The taps of a cache: keys and values [B,H,N,D], queries [B,A,Q,D] and attention [B,A,Q,N] of the last Q of N tokens."""

    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = CACHE

    def attention(self) -> Value:
        """[B,A,Q,N] softmax rows under a causal mask."""
        return self.tensors["attn"] if "attn" in self.tensors else self.op("Softmax", self.logits(), axis=-1)

    def logits(self) -> Value:
        """[B,A,Q,N] scaled products of queries and keys, the lowest number where a token would see a later one."""
        site, op = self.site, self.op
        keys = self.keys()
        if site.shared > 1:
            one = op("Unsqueeze", keys, np.array([2]))
            copies = op("Concat", *[one] * site.shared, axis=2)
            keys = op("Reshape", copies, np.array([0, -1, site.tokens, site.width]))
        product = op(
            "MatMul", op("Mul", self.queries(), site.width**-0.5), op("Transpose", keys, perm=[0, 1, 3, 2])
        )
        return op("Where", cache.seen(site)[None, None], product, steps.LOWEST)

    def hidden(self) -> Value:
        """[B,N,C]."""
        return self._tensor("hidden")

    def noise(self) -> Value:
        """[B,A,Q,N]."""
        return self._tensor("noise")


def thinned(
    method: CacheMethod,
    tensors: Mapping[str, Any],
    *,
    keep: int,
    backend: str | Ops,
    state: Mapping[str, Any],
    block: int,
    blocks: int,
) -> dict[str, Array]:
    """Return "index" [B,H,K] int64 ascending, or [B,1,K]; "keys", "values" [B,H,K,D], as far as given; "state_NAME".

    Raises: MethodError, PlanError.
    """
    arrays, dims = checked(tensors, method.layers, CACHE, "keys")
    tokens, heads, asking = dims["N"], dims["H"], dims.get("Q", 0)
    group, rest = divmod(dims.get("A", heads), heads)
    if rest or asking > tokens:
        raise MethodError(
            f"queries of {dims['A']} heads and {asking} tokens do not go with keys of {heads} heads and {tokens} entries: heads "
            "must be a multiple, and those that ask are among the entries"
        )
    kept, fewest = whole("keep", keep), method.fewest(tokens, 0)
    if not fewest <= kept < tokens:
        raise PlanError(
            f"keep={keep}: method {method.name!r} keeps {fewest} to {tokens - 1} of {tokens} entries"
        )
    site = Site(
        tokens, kept, 0, heads, dims["D"], block, blocks, class_token=False, channels=dims.get("C"), asking=asking,
        shared=group,
    )  # fmt: skip
    _remembered(method, state, (dims["B"], method.lists(site), tokens - asking))

    def outputs(op: Ops, given: Mapping[str, Value], carried: Mapping[str, Value]) -> dict[str, Value | None]:
        found = method.choose(op, CacheTaps(op, given, site, carried), site)
        kept = {name: _entries(op, given[name], found.index) for name in ("keys", "values") if name in given}
        return {"index": found.index, **kept, **{f"state_{name}": item for name, item in found.state.items()}}

    result = run(backend, method.name, arrays, state, outputs)
    return {name: _typed(name, item, arrays) for name, item in result.items() if item is not None}


def _remembered(method: CacheMethod, state: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Raise MethodError unless the state is what the method reads, of the entries that were there before."""
    known = (cache.SCORE,) if "state" in method.reads else ()
    for name, item in state.items():
        if name not in known:
            raise MethodError(
                f"method {method.name!r} reads no state {name!r}; it reads {', '.join(known) or 'none'}"
            )
        if np.shape(item) != shape:
            raise MethodError(
                f"the state {name!r} of method {method.name!r} has the shape {list(np.shape(item))}, not [B,H,N-Q], here "
                f"{list(shape)}: a number for each entry that was there before the tokens that ask"
            )


def _entries(op: Ops, data: Value, index: Value) -> Value:
    """Take entries of data [B,H,N,D] at index [B,H,K] or [B,1,K] -> [B,H,K,D]."""
    heads = op("Slice", op("Shape", data), np.array([0]), np.array([2]))
    count = op("Slice", op("Shape", index), np.array([2]), np.array([3]))
    every = op("Expand", index, op("Concat", heads, count, axis=0))
    return op("GatherND", data, op("Unsqueeze", every, steps.LAST), batch_dims=2)


def _typed(name: str, item: Array, arrays: Mapping[str, Array]) -> Array:
    return item.astype(arrays[name].dtype) if name in arrays else item
