"""Every family of vision parts at two operator sets, through methods at an output: `python -m tokenrt.perf.bench towers`.

Of each file and method the output keeps half, a quarter and a ninth of its tokens. The rows that are left are compared with
with those of the full output, `tokenrt check` compares both files, and the float16 form is built into one engine for every
capability that TensorRT-RTX serves. A refusal is a result and stands there with its reason.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.errors import MethodError, PlanError, UnsupportedError
from tokenrt.passes import methods
from tokenrt.passes.graph.interface import KEPT, MAP
from tokenrt.passes.planning.budget import Budget
from tokenrt.perf.bench.engines import YES, half_engine
from tokenrt.perf.bench.journal import Journal, digest
from tokenrt.perf.bench.models import cache
from tokenrt.perf.bench.towers.families import saved
from tokenrt.perf.bench.towers.page import Cell, Towers
from tokenrt.perf.demo.subject import version
from tokenrt.perf.profile import timing

if TYPE_CHECKING:
    from tokenrt.perf.demo.subject import Array

OPSETS = (20, 23)
SHARES = (1 / 2, 1 / 4, 1 / 9)
TARGET = "rtx-portable"
WORDS = 8
"""Of the text that a method reads: embeddings as wide as the output, as the language model has them."""

METHODS: Mapping[str, Mapping[str, Any]] = {
    "divprune": {},
    "cdpruner": {},
    "dart": {"text_pivots": 0},
    "topk": {},
    "fastervlm": {},
    "vispruner": {},
    "visionzip": {},
}
"""Methods with their options: three that read the rows, three that read the tower's attention, one that merges."""


@dataclass(frozen=True)
class Tower:
    """A family, pixels a side of its pictures or crops, and options of its export."""

    kind: str
    side: int = 32
    options: Mapping[str, Any] = field(default_factory=dict)

    def export(self, opset: int) -> Path:
        """Its file, made on the first call with random weights of seed 0 and kept in the cache."""
        from tokenrt.export import export

        root = cache() / "bench" / "towers"
        told = "-".join(map(str, (self.kind, self.side, *self.options.values(), opset)))
        path = root / f"{told}.onnx"
        if not path.exists():
            root.mkdir(parents=True, exist_ok=True)
            source = f"hf:{saved(self.kind, root, self.side)}"
            export(source, path, part="vision", random_weights=True, opset=opset, **self.options)
        return path


TOWERS: Mapping[str, Tower] = {
    "LLaVA-1.5": Tower("llava", 64),
    "LLaVA-NeXT, 5 crops": Tower("llava_next"),
    "OneVision, 5 crops": Tower("llava_onevision"),
    "OneVision, 4 frames": Tower("llava_onevision", 64, {"image_grid": "4x1x1"}),
    "PaliGemma": Tower("paligemma", 64),
    "Gemma3": Tower("gemma3", 128),
    "InternVL": Tower("internvl", 128),
    "Idefics3": Tower("idefics3", 128),
    "SmolVLM": Tower("smolvlm", 128),
    "Qwen2-VL": Tower("qwen2_vl", options={"image_grid": "16x16"}),
    "Qwen2.5-VL": Tower("qwen2_5_vl", options={"image_grid": "16x16"}),
    "Qwen3-VL": Tower("qwen3_vl", options={"image_grid": "16x16"}),
}
"""Of 64 rows or a few more: half of them are fewer than the channels, and so can all be unlike one another."""


def run(towers: Mapping[str, Tower] = TOWERS, opsets: Sequence[int] = OPSETS) -> Towers:
    """All of it, going on where a run that was stopped had come to. Raises: TokenrtError where a package is missing."""
    cells: list[Cell] = []
    for name, tower in towers.items():
        for opset in opsets:
            cells += through(name, opset, tower.export(opset))
    return Towers(tuple(cells), version("tensorrt_rtx_cu13_libs") or "", TARGET)


def through(name: str, opset: int, path: Path, target: str | None = TARGET) -> Iterator[Cell]:
    """Every method at every share through one file, told on standard error as it goes. target: None builds no engines."""
    for method, options in METHODS.items():
        found = [cell(name, opset, path, method, share, options, target) for share in SHARES]
        print(f"{name}, opset {opset}, {method}: {'; '.join(map(str, found))}", file=sys.stderr, flush=True)
        yield from found


def cell(
    name: str,
    opset: int,
    path: Path,
    method: str,
    share: float,
    options: Mapping[str, Any],
    target: str | None = TARGET,
) -> Cell:
    """One method that leaves a share of the tokens of the file's first output, or why it does not."""
    from tokenrt.passes.checking.check import check
    from tokenrt.passes.reduce import reduce

    journal, told = Journal.of("towers"), Cell(name, opset, method, share)
    whole = timing.session(path, threads=1)
    output = whole.get_outputs()[0]
    with tempfile.TemporaryDirectory(prefix="tokenrt-towers-") as folder:
        reduced = Path(folder) / "reduced.onnx"
        try:
            made = reduce(
                path,
                method=method,
                budget=Budget.keep(share),
                site=f"output:{output.name}",
                options=options,
                shape=_inputs(method, whole),
                output=reduced,
            )
        except (MethodError, PlanError, UnsupportedError) as refusal:
            return told.refuse(str(refusal).splitlines()[0])
        site = made.plan.outputs[0]
        rows = _rows(whole, timing.session(reduced, threads=1), output.name, site.tokens)
        key = digest(path, reduced)
        checked = journal.get(key)
        if checked is None:
            report = check(path, reduced, samples=1)
            checked = journal.put(key, YES if report.ok else "; ".join(report.reasons))
        built = None
        if target is not None:
            built = half_engine(reduced, target, journal)
    return told.found(site.arriving, site.tokens, rows, str(checked), built)


def _inputs(method: str, whole: Any) -> list[str] | None:
    """The shape of the text, for methods that read one: as many rows as the output has pictures."""
    if "text" not in methods.get(method).takes:
        return None
    shape = whole.get_outputs()[0].shape
    pictures = 1 if len(shape) < 3 else shape[0] if isinstance(shape[0], int) else "B"
    return [f"text={pictures}x{WORDS}x{shape[-1]}"]


def _rows(whole: Any, reduced: Any, output: str, tokens: int) -> float | str:
    """The largest difference of rows that are left from those of the full output, as a share of its largest value.

    Of merged rows, those that stand for one token alone are compared. In words where a shape is not as planned.
    """
    given = timing.feeds(reduced, 2)
    names = [value.name for value in reduced.get_outputs()]
    found = dict(zip(names, reduced.run(names, given), strict=True))
    pictures = {value.name: given[value.name] for value in whole.get_inputs()}
    (every,) = whole.run([output], pictures)
    left = found[output]
    if left.shape[-2:] != (tokens, every.shape[-1]):
        return f"shape {list(left.shape)}, planned were {tokens} rows of {every.shape[-1]}"
    places = found[KEPT] if KEPT in found else _alone(found[MAP], tokens)
    every, left = (value.reshape(len(places), -1, every.shape[-1]) for value in (every, left))
    largest = np.abs(every).max()
    pairs = [(picture, row, place) for picture, each in enumerate(places) for row, place in enumerate(each)]
    apart = [left[b, row] - every[b, place] for b, row, place in pairs if place >= 0]
    return float(np.abs(apart).max() / largest) if apart else "no row stands for one token"


def _alone(goes: Array, tokens: int) -> Array:
    """[B,K] int64: the token that a row stands for, -1 where it stands for none or several; goes [B,N]."""
    places = np.full((len(goes), tokens), -1, np.int64)
    for picture, each in enumerate(goes):
        for row in range(tokens):
            (members,) = np.nonzero(each == row)
            if len(members) == 1:
                places[picture, row] = members[0]
    return places
