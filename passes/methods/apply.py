"""Run one reduction method on bare arrays: `tokenrt.apply_method`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.methods.contract import Method, Ops, Reduction, Site, Value
from tokenrt.passes.methods.parts import steps
from tokenrt.passes.methods.parts.cache import CacheMethod
from tokenrt.passes.methods.running import BACKENDS, run, whole
from tokenrt.passes.methods.tensors import Projector, TensorTaps, checked, layout
from tokenrt.passes.methods.thinning import thinned
from tokenrt.passes.ops.contract import Array


def apply_method(
    name: str,
    tensors: Mapping[str, Any],
    *,
    keep: int,
    backend: str | Ops = "numpy",
    protect: int = 1,
    class_token: bool | None = None,
    restore: bool = False,
    block: int = 0,
    blocks: int = 12,
    state: Mapping[str, Any] | None = None,
    multiple_of: int = 1,
    projector: Projector | None = None,
    **params: Any,
) -> dict[str, Array]:
    """Reduce the tokens of one layer, given as arrays; `tokenrt.apply_method` says what each argument is.

    backend: one of BACKENDS, or an object that runs operators on arrays. Raises: MethodError, PlanError.
    """
    method = methods.get(name).from_options(params)
    if isinstance(backend, str) and backend not in BACKENDS:
        raise unknown_backend(backend, BACKENDS)
    if isinstance(method, CacheMethod):
        meant = {
            "protect": protect not in (0, 1), "class_token": bool(class_token), "restore": restore,
            "multiple_of": multiple_of != 1, "projector": projector is not None,
        }  # fmt: skip
        if unread := [argument for argument, said in meant.items() if said]:
            raise MethodError(
                f"method {name!r} chooses entries of a cache, for which {', '.join(unread)} says nothing; its own options say "
                "which entries always stay"
            )
        return thinned(
            method, tensors, keep=keep, backend=backend, state=state or {}, block=block, blocks=blocks
        )
    arrays, dims = checked(tensors, method.layers)
    site = _in_multiples(method, _site(method, dims, keep, protect, class_token), multiple_of)
    site = replace(site, block=block, blocks=blocks, grid=layout(tensors, site))
    if site.keep == site.tokens:
        return _unchanged(arrays, restore)

    def outputs(op: Ops, given: Mapping[str, Value], carried: Mapping[str, Value]) -> dict[str, Value | None]:
        taps = TensorTaps(op, given, site, carried, projector=projector)
        return _outputs(op, method, taps, site, restore)

    return _named(method, arrays, run(backend, name, arrays, state or {}, outputs), site)


def _in_multiples(method: Method, site: Site, multiple_of: int) -> Site:
    """The site with K the nearest multiple that the method can leave; K = N stays."""
    if whole("multiple_of", multiple_of) < 1:
        raise PlanError(f"multiple_of={multiple_of}: expected a whole number of tokens, 1 or more")
    if site.keep == site.tokens or multiple_of == 1:
        return site
    keep = method.nearest(site.keep, site.tokens, site.protect, multiple_of)
    if keep is None:
        raise PlanError(
            f"keep={site.keep}: method {method.name!r} can leave no multiple of {multiple_of} of {site.tokens} tokens, "
            f"{method.fewest(site.tokens, site.protect)} at the least"
        )
    return replace(site, keep=keep)


def unknown_backend(name: str, known: Sequence[str]) -> MethodError:
    """The error for a backend that is none of those known."""
    return MethodError(f"no backend is called {name!r}; backends: {', '.join(known)}")


def restored(op: Ops, tokens: Value, reduction: Reduction, site: Site) -> Value:
    """Return all N tokens: a position gets the token it is part of, a dropped one its own of `tokens`."""
    if reduction.affinity is not None:
        spread = op("MatMul", reduction.affinity, op("Cast", reduction.tokens, to=steps.FLOAT))
        return op("CastLike", spread, tokens)
    own = np.arange(site.tokens)[None] + site.keep
    lost = op("Less", reduction.assign, np.array(0))
    source = op("Where", lost, own, reduction.assign)
    every = op("Expand", source, steps.batch_shape(op, tokens, site.tokens))
    return op("TokenRestore", op("Concat", reduction.tokens, tokens, axis=1), every)


def _site(method: Method, dims: Mapping[str, int], keep: int, protect: int, class_token: bool | None) -> Site:
    tokens = dims["N"]
    kept, first = whole("keep", keep), whole("protect", protect)
    if first < 0 or first >= tokens:
        raise PlanError(f"protect={first}: expected 0 to {tokens - 1} of the {tokens} tokens")
    if kept > tokens:
        raise PlanError(f"keep={kept} is more than the {tokens} tokens there are")
    if kept <= first < method.fewest(tokens, first):
        raise PlanError(
            f"keep={kept} leaves nothing beside the {first} protected tokens; keep at least {first + 1}"
        )
    fewest = method.fewest(tokens, first)
    if kept < fewest:
        raise PlanError(
            f"method {method.name!r} leaves at least {fewest} of {tokens} tokens ({first} protected) in one "
            f"step, got keep={kept}"
        )
    if not kept:
        raise PlanError(f"keep=0: method {method.name!r} would leave nothing of {tokens} tokens")
    has_class = first > 0 if class_token is None else class_token
    heads, width = dims.get("H", 1), dims.get("D", 1)
    site = Site(tokens, kept, first, heads, width, class_token=has_class, channels=dims["C"])
    picture = (dims["h"], dims["w"]) if "h" in dims else None
    packed = 0 if picture else dims.get("U", 0)
    return replace(site, words=dims.get("T"), picture=picture, packed=packed)


def _unchanged(arrays: Mapping[str, Array], restore: bool) -> dict[str, Array]:
    x = arrays["x"]
    every = np.tile(np.arange(x.shape[1]), (len(x), 1))
    result = {
        "tokens": x.copy(),
        "size": np.array(arrays.get("size", np.ones((*x.shape[:2], 1), np.float32))),
        "index": every,
        "assign": every.copy(),
    }
    return result | ({"restored": x.copy()} if restore else {})


def _outputs(op: Ops, method: Method, taps: TensorTaps, site: Site, restore: bool) -> dict[str, Value | None]:
    reduction = method.reduce(op, taps, site)
    return {
        "tokens": reduction.tokens,
        "size": reduction.size,
        "position": reduction.position,
        "assign": reduction.assign,
        "restored": restored(op, taps.tokens, reduction, site) if restore else None,
        "affinity": reduction.affinity if restore else None,
        **{f"state_{name}": value for name, value in reduction.state.items()},
    }


def _named(
    method: Method, arrays: Mapping[str, Array], result: Mapping[str, Array | None], site: Site
) -> dict[str, Array]:
    x, size, assign, position = arrays["x"], result["size"], result["assign"], result["position"]
    if assign is None or position is None or result["tokens"] is None:
        raise MethodError(f"method {method.name!r} returned no tokens, positions or map")
    batch = len(x)
    if size is None:
        size = np.ones((batch, site.keep, 1))
    kept = int(assign.max()) + 1 if method.drops else site.keep
    named = {
        "tokens": result["tokens"].astype(x.dtype),
        "size": size.astype(arrays.get("size", np.ones(1, "f")).dtype),
        "index": np.broadcast_to(position[:, :kept], (batch, kept)).astype(np.int64),
        "assign": np.broadcast_to(assign, (batch, site.tokens)).astype(np.int64),
    }
    if result["restored"] is not None:
        named["restored"] = result["restored"].astype(x.dtype)
    if result["affinity"] is not None:
        named["affinity"] = result["affinity"]
    named.update(
        {name: value for name, value in result.items() if name.startswith("state_") and value is not None}
    )
    return named
