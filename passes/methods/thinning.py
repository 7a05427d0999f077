"""Run one method on a cache given as arrays: which entries of each head stay, and their keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Ops, Site, Value
from tokenrt.passes.methods.parts import cache, steps
from tokenrt.passes.methods.parts.cache import CacheMethod, Rows
from tokenrt.passes.methods.running import run, whole
from tokenrt.passes.methods.tensors import CACHE, TensorTaps, checked
from tokenrt.passes.ops.contract import Array


@dataclass(frozen=True)
class ArrayTaps(TensorTaps):
    """The taps of a cache: keys and values [B,H,N,D], queries [B,A,Q,D] and attention [B,A,Q,N] of the last Q of N tokens."""

    shapes: ClassVar[Mapping[str, tuple[str, ...]]] = CACHE

    def attention(self, rows: Rows = None) -> Value:
        """[B,A,R,N] softmax rows under a causal mask."""
        if "attn" in self.tensors:
            return self._taken(self.tensors["attn"], rows)
        return self.op("Softmax", self.logits(rows), axis=-1)

    def logits(self, rows: Rows = None) -> Value:
        """[B,A,R,N] scaled products of queries and keys, the lowest number where a token would see a later one."""
        site, op = self.site, self.op
        keys, queries = self.keys(), self._taken(self.queries(), rows)
        if site.shared > 1:
            one = op("Unsqueeze", keys, np.array([2]))
            copies = op("Concat", *[one] * site.shared, axis=2)
            keys = op("Reshape", copies, np.array([0, -1, site.tokens, site.width]))
        product = op("MatMul", op("Mul", queries, site.width**-0.5), op("Transpose", keys, perm=[0, 1, 3, 2]))
        seen = cache.seen(site) if rows is None else cache.seen(site)[[*rows]]
        return op("Where", seen[None, None], product, steps.LOWEST)

    def _taken(self, value: Value, rows: Rows) -> Value:
        """These of the Q rows on axis 2."""
        return value if rows is None else self.op("Gather", value, np.array([*rows]), axis=2)

    def hidden(self) -> Value:
        """[B,N,C]."""
        return self._tensor("hidden")

    def noise(self) -> Value:
        """[B,A,Q,N]."""
        return self._tensor("noise")

    def temperature(self) -> Value:
        """[B,1]."""
        return self._tensor("temperature")

    def real(self) -> None:
        """All are."""

    def unrotated(self) -> ArrayTaps:
        """These: what is given is what the method asks for."""
        return self

    def predicted(self, width: int) -> ArrayTaps:
        """These: what is given is what the method asks for."""
        return self


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
        found = method.choose(op, ArrayTaps(op, given, site, carried), site)
        kept = {
            name: cache.entries(op, given[name], found.index) for name in ("keys", "values") if name in given
        }
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


def _typed(name: str, item: Array, arrays: Mapping[str, Array]) -> Array:
    return item.astype(arrays[name].dtype) if name in arrays else item
