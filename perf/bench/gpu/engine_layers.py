"""Engine layers that a reduction adds at a site, about one launch each, as TensorRT-RTX fuses them.

`python -m tokenrt.perf.bench engine_layers` writes docs/results/engine_layers.md. Engines are built in float16 of DeiT-S as timm
has it, with random weights: with the portable bodies that `reduce` writes, and with those that `lower --target` and `build`
give to GPU targets. The methods that people deploy are built for every capability, every other method that needs no training
for one.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.errors import TokenrtError
from tokenrt.export import export
from tokenrt.passes import methods
from tokenrt.passes.forms.bodies import for_gpu
from tokenrt.passes.forms.convert import convert
from tokenrt.passes.ops import OPERATORS
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench import results
from tokenrt.perf.bench.gpu import builds
from tokenrt.perf.bench.journal import Journal, digest
from tokenrt.perf.demo.subject import version
from tokenrt.targets.layers import layers

MODEL = "timm:deit_small_patch16_224"
BLOCKS = [3, 6, 9]
BUDGETS: Mapping[str, Budget] = {
    "tome": Budget.remove(8),
    "pitome": Budget.remove(8),
    "topk": Budget.keep(0.7, BLOCKS),
    "evit": Budget.keep(0.7, BLOCKS),
}
"""The methods that people deploy, built for every capability, and with the portable bodies too."""

OTHERS = Budget.keep(0.7, BLOCKS)
BATCHES = (1, 8)
CAPABILITIES = ("8.9", "8.0", "12.0")
FORMS = ("portable", "for GPUs")

SITE = re.compile(r"tokenrt_(?:block|restore|repair|tail)")
CALL = re.compile(r"tokenrt_[a-z]+\d*_([A-Za-z]+)_\d+/")
"""The operator of ours whose body a node was part of."""


@dataclass(frozen=True)
class Row:
    """Layers of one engine, and how many each of its sites adds.

    own: layers with nothing of the model in them, by the operator that most of their nodes are of. fused, attentions: layers that
    hold an attention's softmax and both its products, here and in the unreduced engine.
    """

    method: str
    form: str
    batch: int
    layers: int
    sites: int
    base: int
    capability: str = CAPABILITIES[0]
    own: Mapping[str, int] = field(default_factory=dict)
    fused: int = 0
    attentions: int = 0

    @property
    def each(self) -> float:
        return (self.layers - self.base) / self.sites

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "layers_a_site": round(self.each, 2)}

    def parts(self) -> str:
        """Its own layers a site, most first."""
        found = sorted(self.own.items(), key=lambda entry: (-entry[1], entry[0]))
        return ", ".join(f"{name} {count / self.sites:.1f}" for name, count in found)


@dataclass(frozen=True)
class EngineLayers:
    """All rows. refused: methods that gave no engine, and why. built: every method at one site, yes or why not."""

    rows: tuple[Row, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    built: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        rows = [row.as_dict() for row in self.rows]
        return {"rows": rows, "refused": dict(self.refused), "built": dict(self.built)}

    def page(self, where: Mapping[str, Any]) -> str:
        """The results page."""
        head = f"Layers that a site adds to an engine of {MODEL} (random weights), float16: about one launch each, counted by "
        head += "the builder of TensorRT-RTX, not timed; nothing ran on a GPU. Portable bodies are those that `reduce` writes; "
        head += "`lower --target` and `build` give the others to targets of TensorRT and TensorRT-RTX. "
        head += "Made by `python -m tokenrt.perf.bench engine_layers`."
        parts = ["# Engine layers", head, self._deployed(), f"Unreduced: {self._bases()}.", self._attention()]
        if others := [row for row in self.rows if row.method not in BUDGETS]:
            told = (
                f"The other methods that need no training, {OTHERS.amount:.0%} of the tokens kept at blocks "
            )
            told += f"{', '.join(map(str, BLOCKS))} each, with the bodies "
            told += f"for GPUs, capability {CAPABILITIES[0]}. A layer counts once that stands in a loop: methods that choose "
            told += "tokens one after the other start its layers once a turn."
            parts += [told, self._others(others)]
        parts.extend(f"- `{method}`: {reason}" for method, reason in self.refused.items())
        parts.extend(builds.told(self.built) if self.built else ())
        return "\n\n".join((*parts, results.told(where)))

    def _attention(self) -> str:
        whole = " or ".join(map(str, sorted({row.attentions for row in self.rows})))
        told = f"Attention, its softmax and both products, is one layer in {whole} blocks of the unreduced engines, and in as "
        told += "many of all others"
        apart = {
            f"`{row.method}` at {row.capability}, batch {row.batch}: {row.fused} of {row.attentions}": None
            for row in self.rows
            if row.fused < row.attentions
        }
        return f"{told}{' but ' if apart else ''}{'; '.join(apart)}."

    def _deployed(self) -> str:
        """The table of the methods that people deploy."""
        rows = [row for row in self.rows if row.method in BUDGETS]
        columns = list(dict.fromkeys((row.form, row.capability, row.batch) for row in rows))
        found = {(row.method, row.form, row.capability, row.batch): f"{row.each:+.1f}" for row in rows}
        titles = [f"{form}, {capability}, batch {batch}:" for form, capability, batch in columns]
        lines = [
            [f"`{method}`", *(found[method, *column] for column in columns)]
            for method in dict.fromkeys(row.method for row in rows)
        ]
        return results.table(["method", *titles], lines)

    def _others(self, rows: Sequence[Row]) -> str:
        batches = list(dict.fromkeys(row.batch for row in rows))
        found = {(row.method, row.batch): row for row in rows}
        lines = [
            [
                f"`{method}`",
                *(f"{found[method, batch].each:+.1f}" for batch in batches),
                found[method, batches[0]].parts(),
            ]
            for method in dict.fromkeys(row.method for row in rows)
        ]
        titles = [f"batch {batch}:" for batch in batches]
        return results.table(["method", *titles, f"of which by themselves, batch {batches[0]}"], lines)

    def _bases(self) -> str:
        bases = {(row.batch, row.capability): row.base for row in self.rows}
        return ", ".join(
            f"{base} layers at batch {batch} ({capability})" for (batch, capability), base in bases.items()
        )


def run(
    budgets: Mapping[str, Budget] | None = None,
    batches: Sequence[int] = BATCHES,
    model: Path | None = None,
    capabilities: Sequence[str] = CAPABILITIES,
) -> EngineLayers:
    """Build the engines and count. budgets: all methods when left out. model: instead of DeiT-S.

    Raises: DependencyError where TensorRT-RTX is not installed, BuildError where it refuses one that people deploy.
    """
    asked = {**BUDGETS, **dict.fromkeys(untrained(), OTHERS)} if budgets is None else budgets
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.onnx"
        if model is None:
            export(MODEL, whole, random_weights=True)
        count = _Counter(model or whole, batches)
        rows: list[Row] = []
        for method, budget in asked.items():
            try:
                rows.extend(count.rows(method, budget, capabilities))
            except TokenrtError as error:
                if method in BUDGETS:
                    raise
                refused[method] = str(error).splitlines()[0]
    return EngineLayers(tuple(rows), refused, builds.run() if budgets is None else {})


def untrained() -> Iterator[str]:
    """The methods for pictures at a block that need no trained weights, beside those that people deploy."""
    for name in methods.at_blocks():
        method = methods.get(name)
        if not method.needs and method.family != "video" and name not in BUDGETS:
            yield name


class _Counter:
    """Counts the layers of one model, whole and reduced."""

    def __init__(self, whole: Path, batches: Sequence[int]) -> None:
        self._whole, self._batches, self._journal = whole, batches, Journal.of("engine_layers")
        self._bases: dict[tuple[int, str], tuple[int, int]] = {}

    def rows(self, method: str, budget: Budget, capabilities: Sequence[str]) -> Iterator[Row]:
        reduced = reduce(self._whole, method=method, budget=budget)
        deployed = method in BUDGETS
        for form in FORMS if deployed else FORMS[1:]:
            model = _half(reduced.model)
            if form != FORMS[0]:
                for_gpu(model)
            for capability in capabilities if deployed and form != FORMS[0] else capabilities[:1]:
                for batch in self._batches:
                    made = self._layers(model, capability, batch)
                    base, attentions = self._base(batch, capability)
                    sites, fused = len(reduced.plan.sites), _fused(model, made)
                    own = _own(made)
                    yield Row(method, form, batch, len(made), sites, base, capability, own, fused, attentions)

    def _base(self, batch: int, capability: str) -> tuple[int, int]:
        """Layers of the unreduced engine, and those that are an attention."""
        if (batch, capability) not in self._bases:
            model = _half(ir.load(self._whole))
            made = self._layers(model, capability, batch)
            self._bases[batch, capability] = len(made), _fused(model, made)
        return self._bases[batch, capability]

    def _layers(self, model: ir.Model, capability: str, batch: int) -> Sequence[Sequence[str]]:
        """Those of the engine, not built again where it was by the same builder of the same model."""
        with tempfile.TemporaryDirectory() as folder:
            ir.save(model, Path(folder) / "model.onnx")
            builder = str(version("tensorrt_rtx_cu13_libs"))
            key = digest(Path(folder) / "model.onnx", capability, str(batch), builder)
        made: Sequence[Sequence[str]] | None = self._journal.get(key)
        if made is None:
            made = self._journal.put(key, layers(model, capability=capability, batch=batch))
        return made


def _fused(model: ir.Model, made: Sequence[Sequence[str]]) -> int:
    """Layers that hold a softmax of the model and two of its products."""
    operators = {node.name: node.op_type for node in model.graph if not SITE.match(str(node.name))}
    held = [Counter(operators.get(node) for node in nodes) for nodes in made]
    return sum(each["Softmax"] == 1 and each["MatMul"] >= 2 for each in held)


def _own(made: Sequence[Sequence[str]]) -> dict[str, int]:
    """Layers that hold nodes of reductions alone, by the operator that most of these are of."""
    found: Counter[str] = Counter()
    for nodes in made:
        if nodes and all(SITE.match(node) for node in nodes):
            calls = Counter(_operator(node) for node in nodes)
            found[calls.most_common(1)[0][0]] += 1
    return dict(found)


def _operator(node: str) -> str:
    """The operator of ours that a node is of; `steps` for standard ones beside them."""
    match = CALL.match(node)
    return match[1] if match is not None and match[1] in OPERATORS else "steps"


def _half(model: ir.Model) -> ir.Model:
    return convert(model, precision="fp16", keep_io=True, rules="standard", check=False).model
