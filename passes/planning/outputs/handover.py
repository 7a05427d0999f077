"""What whoever runs a model must know of outputs that hold fewer tokens: how many, which, and what to do with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.files import atomic
from tokenrt.passes import methods
from tokenrt.passes.graph.interface import (
    CACHES,
    GAINED,
    KEPT,
    MAP,
    PAST,
    PRESENT,
    SCORE,
    caches,
    holds,
    is_gained,
)
from tokenrt.passes.methods.parts import steps
from tokenrt.passes.methods.parts.cache import OWN
from tokenrt.passes.planning.entries import BEFORE
from tokenrt.passes.planning.outputs.site import OutputSite
from tokenrt.passes.planning.plan import Plan
from tokenrt.version import __version__

HOST = {
    KEPT: (
        "write as many placeholders into the prompt as an output has tokens, before the encoder runs",
        f"row k of an output is token {KEPT}[:, k] of the original, counted from 0",
        "positions: gather the rows of the original position ids (or rotary tables) by it and go on behind the original length, "
        "or renumber all tokens that are left; tokenrt.host has both",
        "a cache of encoded pictures keeps the first choice: another run may decide near ties otherwise",
    ),
    MAP: (
        "write as many placeholders into the prompt as an output has tokens, before the encoder runs",
        f"original token n is part of row {MAP}[:, n] of an output, -1 where it was dropped",
        "a row may stand for several tokens, so that its position is a choice of the host's: renumber all tokens that are left",
    ),
}


GOES_ON = (
    "the cache of layer n holds as many tokens as `tokens` says of it; keys are rotated by the positions of the whole prompt",
    "the next token has position next_position, the length of the whole prompt, not the length of a cache",
    "a mask, or a count of the past, of a layer is as long as its cache: where a decoder has one for all layers, reduce with "
    "--cache gathered",
    "entry k of a cache is token index[:, k] of the prompt, counted from 0, where `index` names an output, or several merged of "
    "which that is the last; else token k",
)
MARK = "the mask of the prompt goes with its entries: gather it by the index of any head, padding stays only where all else does"
BY_HEAD = "an index [B,H,K] is of each head, which keeps entries of its own"
SHOWN = "the cache of a layer under `windows` is what its window shows the next token: from token `first` on, none of which left"
WHOLE = "the cache of a layer with `salient` is whole: that output names the entries of it that matter most"
SCORES = "the next call takes present_score of a layer as past_score, for the same entries; zeros where there was none"
DECODES = (
    "the cache of layer n holds as many entries as `tokens` says of it, of the past and the new ones behind it",
    "entry k of a cache is entry index[:, k] of the past with the new ones behind it, counted from 0",
    "the position of a token to come is the number of tokens so far, not the length of a cache",
    "the next call's past is this cache, and its mask as long as that and one more; gather the mask by the index of any head",
)


STEPS = (
    "the first step, and those at which no token shall rest, run the model named by dense; it takes the original's inputs alone",
    "every other step takes as past what the step before gave as present, and as update what the step before added to the latent "
    "picture: the step of its scheduler",
    "every output is complete: where tokens rest it says what the step before said",
    "guidance by two halves of a batch: let both halves choose alike by giving both the same update",
)


def told(
    model: ir.Model,
    layers: Sequence[Mapping[str, Any]],
    tokens: int | None,
    windows: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write into a model what its caches are: those of each layer, of layers that see a window apart, and the prompt's length.

    tokens: of the whole prompt, None while decoding.
    """
    position = {} if tokens is None else {"next_position": tokens}
    shown = {"windows": windows} if windows else {}
    model.metadata_props[CACHES] = json.dumps({"layers": layers, **shown, **position})


def layers_of(model: ir.Model) -> dict[str, int]:
    """The layers of outputs with keys, by name, as the model says."""
    return {layer["key"]: layer["layer"] for layer in caches(model).get("layers", ())}


def manifest(plan: Plan, model: ir.Model) -> dict[str, Any]:
    """The handover of a model with short outputs as data; empty for any other."""
    index = next(
        (name for name in (KEPT, MAP) if any(value.name == name for value in model.graph.outputs)), None
    )
    cache = caches(model)
    if any(site.where == BEFORE for site in plan.sites):
        return _state(plan, model)
    if not (cache or (index and (plan.outputs or plan.short))):
        return {}
    sizes = {str(value.name): _sizes(value) for value in model.graph.outputs}
    added = [value for value in model.graph.inputs if holds(str(value.name))]
    return {
        "tokenrt": __version__,
        "plan": plan.as_dict(),
        "outputs": sizes,
        "index": index,
        "ascending": index == KEPT and bool(plan.outputs or cache) and all(map(_ascending, plan.outputs)),
        "inputs": {
            str(value.name): {
                "shape": _sizes(value),
                "holds": holds(str(value.name)),
            }
            for value in added
        },
        **({"cache": {"form": plan.cache, **cache}} if cache else {}),
        "host": _goes_on(cache) if cache else list(HOST[str(index)]),
    }


def _goes_on(cache: Mapping[str, Any]) -> list[str]:
    """What a host must know of caches."""
    layers, prompt = cache["layers"], "next_position" in cache
    chosen = any("heads" in layer for layer in layers)
    lines = [*(GOES_ON if prompt else DECODES)]
    lines += [MARK] * (chosen and prompt) + [BY_HEAD] * any(layer.get("heads") == OWN for layer in layers)
    lines += [SHOWN] * ("windows" in cache)
    lines += [WHOLE] * any("salient" in layer for layer in layers)
    return lines + [SCORES] * any(f"{PRESENT}{SCORE}" in layer for layer in layers)


def _state(plan: Plan, model: ir.Model) -> dict[str, Any]:
    """The handover of a model that is called step by step."""
    given = [value for value in model.graph.inputs if is_gained(str(value.name))]
    past = [value for value in given if str(value.name).startswith(PAST)]
    return {
        "tokenrt": __version__,
        "plan": plan.as_dict(),
        "inputs": {
            str(value.name): {"shape": _sizes(value), "holds": GAINED[str(value.name)]}
            for value in given
            if value not in past
        },
        "state": [
            {
                "past": str(value.name),
                "present": f"{PRESENT}{str(value.name).removeprefix(PAST)}",
                "shape": _sizes(value),
            }
            for value in past
        ],
        "host": list(STEPS),
    }


def _sizes(value: ir.Value) -> list[int | str]:
    """A shape as text files have it."""
    return [size if isinstance(size, int) else str(size) for size in value.shape or ()]


def _ascending(site: OutputSite) -> bool:
    """Whether the tokens that a choice leaves keep their order, with the options it has."""
    order = site.options.get("order")
    return order == steps.BY_POSITION or (order is None and methods.get(site.method).ascending)


def beside(output: str | os.PathLike[str]) -> Path:
    """Where the handover of a model lies: its name with .json behind."""
    path = Path(output)
    return path.with_name(f"{path.name}.json")


def dense(output: str | os.PathLike[str]) -> Path:
    """Where the model of a step lies at which no token rests: R.dense.onnx beside R.onnx."""
    path = Path(output)
    return path.with_name(f"{path.stem}.dense{path.suffix}")


def write(plan: Plan, model: ir.Model, output: str | os.PathLike[str]) -> Path | None:
    """Write the handover beside the model, where it has one; that of a model that lay there before goes."""
    made, path = manifest(plan, model), beside(output)
    made |= {"dense": dense(output).name} if "state" in made else {}
    if not made:
        if path.is_file() and _is_ours(path):
            path.unlink()
        return None
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return path


def _is_ours(path: Path) -> bool:
    """Whether a file is a handover, and not somebody's own."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"tokenrt", "plan", "host"} <= found.keys()
