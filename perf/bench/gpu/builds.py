"""Every method behind a block or at an output, float16, at one site: whether TensorRT-RTX builds it for all capabilities.

Methods that sit behind blocks reduce a small plain vision transformer, those at outputs the vision part of a small LLaVA, those
of clips four frames of it. Trained tensors are random ones of the right shapes: that says what is built, not how good it is.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.planning.budget import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench import results
from tokenrt.perf.bench.engines import YES, half_engine
from tokenrt.perf.bench.journal import Journal
from tokenrt.perf.bench.method_models import SITES, budgets, given, length
from tokenrt.perf.bench.models import cache
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.bench.towers.towers import Tower

TARGET = "rtx-portable"
VIT = PlainViT(width=384, heads=6, blocks=3, patch=16)
PICTURE, CLIP, GRID = Tower("llava", 192), Tower("llava", 96, {"batch": 4}), (4, 12, 12)
"""576 tokens each: of a picture, and of four frames."""

KEEP: Mapping[str, int] = {"mustdrop": 109, "dycoke": 432, "holitom": 289, "prunevid": 290}
"""Counts that methods with rules of their own can leave; others leave a quarter of a picture and half of a clip."""

OPTIONS: Mapping[str, Mapping[str, Any]] = {"hiprune": {"middle": 1}}
TEXT = "text=1x8x48"
LETTERS = {"M": 4, "Q": 3, "L": 256}
WIDE = ("embedlens", "focusllava")
"""Their tensors are as wide as the output; those of others as the features in front of the projector."""

HOMES = ("block", "features", "output")
"""Where methods sit that are built; those that run on arrays alone are not among them."""


def named() -> list[str]:
    """The methods that are built."""
    every = {name: methods.get(name) for name in methods.names()}
    return [name for name, method in every.items() if method.home in HOMES and not method.pending]


def run(names: Iterable[str] | None = None) -> dict[str, str]:
    """Method -> yes, or what refused it. names: all of `named` when left out."""
    found: dict[str, str] = {}
    for name in named() if names is None else names:
        found[name] = _built(methods.get(name))
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def told(built: Mapping[str, str]) -> list[str]:
    """Paragraphs of a page."""
    head = "Every method behind a block or at an output, at one site, float16, one picture or clip, built by "
    head += f"`tokenrt build --target {TARGET}` into one engine for the compute capabilities 8.0, 8.6, 8.9 and 12.0: in a small "
    head += "plain vision transformer, or at the output of the vision part of a small LLaVA, of four frames for methods of "
    head += "clips; trained tensors are random ones. "
    head += f"{sum(answer == YES for answer in built.values())} of {len(built)} are built."
    titles = methods.families()
    yes = {
        title: [
            name for name, answer in built.items() if methods.get(name).family == family and answer == YES
        ]
        for family, title in titles.items()
    }
    lines = [[title, ", ".join(f"`{name}`" for name in names)] for title, names in yes.items() if names]
    rest = [f"- `{name}`: {answer}" for name, answer in built.items() if answer != YES]
    return [head, results.table(["family", "built"], lines), *rest]


def _built(method: type[Method]) -> str:
    with tempfile.TemporaryDirectory(prefix="tokenrt-builds-") as folder:
        reduced = Path(folder) / "reduced.onnx"
        try:
            (_behind_a_block if method.home == "block" else _at_an_output)(method, reduced)
        except TokenrtError as refusal:
            return f"refused: {str(refusal).splitlines()[0]}"
        return half_engine(reduced, TARGET, Journal.of("builds"))


def _behind_a_block(method: type[Method], output: Path) -> None:
    path = cache() / "bench" / "plain-vit-small.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        VIT.write(path)
    prepared = prepare(path)
    counts = [KEEP.get(method.name, budgets(prepared)[1][0])]
    options = {**OPTIONS.get(method.name, {}), **given(method, prepared, counts)}
    shape = [f"{prepared.model.graph.inputs[0].name}=1x3x{VIT.image}x{VIT.image}"]
    budget = Budget.tokens(counts, SITES[:1])
    reduce(path, method=method.name, budget=budget, options=options, shape=shape, output=output)


def _at_an_output(method: type[Method], output: Path) -> None:
    clip = method.family == "video"
    keep = KEEP.get(method.name, 288 if clip else 144)
    options = dict(OPTIONS.get(method.name, {}))
    if method.needs:
        width, random = 48 if method.name in WIDE else 32, np.random.default_rng(0)
        letters = {**LETTERS, "C": width, "E": width, "K": keep}
        shapes = {
            name: [length(part, letters) for part in text.split(",")] for name, text in method.needs.items()
        }
        options["weights"] = {
            name: (0.3 * random.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()
        }
    shape = [] if clip else [f"pixel_values=1x3x{PICTURE.side}x{PICTURE.side}"]
    reduce(
        (CLIP if clip else PICTURE).export(20),
        method=method.name,
        budget=Budget.tokens([keep]),
        site="output",
        options=options,
        grid=GRID if clip else None,
        shape=[*shape, *([TEXT] if {"text", "text?"} & {*method.takes} else [])] or None,
        output=output,
    )
