"""Compare a reduced model with its original, and its function form with its inlined form (Polygraphy)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.errors import ModelError
from tokenrt.passes.checking import choices, interface, ties
from tokenrt.passes.checking.batches import batch_of
from tokenrt.passes.checking.check_data import Feed, feeds, inputs_of, quiet, samples_of
from tokenrt.passes.checking.choices import Choices
from tokenrt.passes.checking.drift import Drift, compared, distance, drifts, number
from tokenrt.passes.checking.emulate import comparable
from tokenrt.passes.checking.properties import Questions, Runner, unchanged
from tokenrt.passes.checking.runtime import session_options
from tokenrt.passes.checking.verdict import ROUNDING, Property, tolerance
from tokenrt.passes.graph.chance import drawn
from tokenrt.passes.graph.functions import describe, inline
from tokenrt.passes.graph.interface import caches
from tokenrt.passes.graph.model import ModelLike, copy, load, on_disk
from tokenrt.passes.ops import DOMAIN

FUNCTION_TOLERANCE = 1e-5
"""Largest relative L2 distance of the function form from the inlined form, in fp32."""

Ask = Callable[[str, Runner, Mapping[str, Any]], None]


@dataclass(frozen=True)
class CheckReport:
    """The verdict: `ok`, or the reasons why not.

    function_form: relative L2 distance of function form and inlined form by output; None for a reduced model
    without functions, or one whose distance is not a number. choices: for two forms of one reduction, as float32
    and half, which tokens they choose. properties: what was asked of both models besides, those that failed among the
    reasons too. random: outputs that come of random numbers, and the node that draws them: two runs of one model differ
    there, so only shapes and finite values are judged.
    """

    outputs: tuple[Drift, ...]
    samples: int
    data: str
    function_form: Mapping[str, float | None] | None
    reasons: tuple[str, ...]
    choices: Choices | None = None
    properties: tuple[Property, ...] = ()
    random: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "reasons": list(self.reasons),
            "samples": self.samples,
            "data": self.data,
            "outputs": [drift.as_dict() for drift in self.outputs],
            "function_form": None if self.function_form is None else dict(self.function_form),
            "choices": None if self.choices is None else self.choices.as_dict(),
            "properties": [line.as_dict() for line in self.properties],
            "random": dict(self.random),
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("output", "shape", box=None, pad_edge=False)
        for heading in ("cosine min", "mean", "relative L2", "max abs", "top-1"):
            table.add_column(heading, justify="right")
        for drift in self.outputs:
            table.add_row(
                drift.output,
                "x".join(map(str, drift.shape)),
                _cell(drift.cosine_min, ".5f"),
                _cell(drift.cosine_mean, ".5f"),
                _cell(drift.relative_l2, ".2e"),
                _cell(drift.max_abs, ".2e"),
                _cell(drift.agreement, ".1%"),
            )
        forms = "no functions in the reduced model"
        if self.function_form is not None:
            numbers = [value for value in self.function_form.values() if value is not None]
            forms = f"function form and inlined form differ by {max(numbers, default=0):.1e}"
        verdict = Text("ok", style="green") if self.ok else Text("not ok", style="red")
        chosen = "" if self.choices is None else f"\n{self.choices}"
        for name, node in self.random.items():
            chosen += f"\noutput {name!r} may differ from run to run ({node} draws anew): not compared"
        told = Text(f"{self.samples} samples, {self.data}; {forms}{chosen}")
        lines = [Text(str(line), style="" if line.ok else "red") for line in self.properties]
        return Group(table, told, *lines, verdict, *(Text(f"- {reason}") for reason in self.reasons))


def check(
    original: ModelLike,
    reduced: ModelLike,
    *,
    data: str | Path | Mapping[str, Any] | None = None,
    batch: int = 2,
    seed: int = 0,
    samples: int = 4,
    min_cosine: float | None = None,
    min_agreement: float | None = None,
    function_tolerance: float = FUNCTION_TOLERANCE,
    properties: bool = True,
) -> CheckReport:
    """Run both models on the same inputs in ONNX Runtime (CPU), one session at a time; compare the outputs.

    data: an .npz with an array for each input, whose first axis counts samples (with one axis more than the
    input has, it counts batches); a directory of .npz, of .npy or of pictures; or the arrays themselves.
    Without it, `samples` batches of seeded noise, of `batch` each: indices within the table they look up,
    masks of ones. min_cosine, min_agreement: thresholds; left out, these numbers are reported only. Finite
    values, the original's shapes, and function form equal to inlined form are always asked for.

    properties: ask besides whether the pictures of a batch stay apart in the reduced model, as they do in the original
    (in another order, alone, in other company), and whether the form that reductions are made in computes what the
    original does. Names, order, types and shapes of inputs and outputs are compared in any case.

    A float input may be half in one model alone; bfloat16, which the CPU does not run, is emulated.

    Raises: ModelError when a model cannot be read or run, or the two have other inputs or outputs;
        TokenrtError for data that does not fit.
    """
    with ExitStack() as files:
        first, second = (files.enter_context(on_disk(model)) for model in (original, reduced))
        before, after = load(first), load(second)
        _no_bare_nodes(after)
        lines = [interface.told_apart(before, after)]
        random, frozen = _random(before, after)
        changed = [interface.once(before), interface.once(after)]
        declared = interface.declared(before), interface.declared(after)
        entries = {
            layer[part]: layer["index"]
            for layer in caches(after).get("layers", ())
            for part in ("key", "value")
            if "index" in layer
        }
        wanted = inputs_of(*_floats(before, after, changed))
        feed, told = feeds(wanted, before, data=data, batch=batch, seed=seed, samples=samples)
        rounding = _coarsest(second)
        inlined = _inlined(after) if after.functions else None
        sites = choices.expose(before, after)
        asked = None
        if properties:
            pictures = batch_of(wanted, feed, before, declared[0].values(), seed)
            asked = Questions(
                pictures, feed[0], seed, ties.expose(after), (tolerance(first), tolerance(second))
            )
        forms = {"original": first, "reduced": second}
        exposed = bool(sites), bool(sites or (asked and asked.choices))
        for name, own, more, other in zip(forms, changed, exposed, (before, after), strict=True):
            if own or more:
                forms[name] = files.enter_context(on_disk(other))
        if inlined is not None:
            forms["inlined"] = files.enter_context(on_disk(inlined))
        del before, after, inlined
        answers: dict[str, Any] = {}
        results = _run(forms, feed, None if asked is None else partial(asked.ask, answers))
        if answers:
            lines += [*answers["reduced"], unchanged(answers["original"], forms["original"], wanted, _once)]
    found, reasons = drifts(results, declared, _batches(feed), random, entries)
    reasons += frozen
    for drift in found:
        reasons += _below(drift, "cosine", drift.cosine_min, min_cosine)
        reasons += _below(drift, "top-1 agreement", drift.agreement, min_agreement)
    distances = (
        _function_form(results, max(function_tolerance, 4 * rounding), reasons, random)
        if "inlined" in forms
        else None
    )
    reasons += [f"{line.name}: {line.why}" for line in lines if not line.ok]
    chosen = choices.compared(sites, results[0][1], results[1][1]) if sites else None
    samples = sum(_batches(feed))
    return CheckReport(tuple(found), samples, told, distances, tuple(reasons), chosen, tuple(lines), random)


def _run(forms: Mapping[str, Path], feed: Sequence[Feed], ask: Ask | None = None) -> Any:
    """Polygraphy's RunResults of every model on every input; a session lives while its model runs and is asked."""
    from polygraphy.comparator import RunResults

    results = RunResults()
    for name, path in forms.items():
        results.extend(_run_one(name, path, feed, ask))
    return results


def _run_one(name: str, path: Path, feed: Sequence[Feed], ask: Ask | None) -> Any:
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.comparator import Comparator

    with quiet():
        try:
            session = _session(path)
            taken = [_taken(session, run) for run in feed]
            result = Comparator.run([OnnxrtRunner(session, name=name)], data_loader=taken)
        except Exception as cause:
            what = " ".join(str(cause).split())[:600]
            raise ModelError(f"ONNX Runtime cannot run the {name} model: {what}") from cause
    if ask is not None:
        ask(name, partial(_answer, session), {key: result[0][1][0][key] for key in result[0][1][0]})
    return result


def _answer(session: Any, feed: Feed) -> dict[str, Any]:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, _taken(session, feed)), strict=True))


def _taken(session: Any, feed: Feed) -> Feed:
    """The inputs the model has: a reduced one may have lost some."""
    return {value.name: feed[value.name] for value in session.get_inputs()}


def _once(path: Path, feed: Feed) -> dict[str, Any]:
    return _answer(_session(path), feed)


def _session(path: Path) -> Any:
    import onnxruntime

    # The two models are optimized alike, also where one of them is half.
    options = session_options(path, layouts=False)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _random(before: ir.Model, after: ir.Model) -> tuple[dict[str, str], list[str]]:
    """Outputs that come of random numbers in either model, and what is wrong where they do so in one alone."""
    own, other = drawn(before), drawn(after)
    reasons = [
        f"output {name!r}: random in the original ({own[name]}), and the same in every run of the reduced model"
        if name in own
        else f"output {name!r}: random in the reduced model ({other[name]}), and the same in every run of the original"
        for name in own.keys() ^ other.keys()
    ]
    return {**other, **own}, sorted(reasons)


def _function_form(
    results: Any, tolerance: float, reasons: list[str], random: Mapping[str, str]
) -> dict[str, float | None]:
    distances: dict[str, float | None] = {}
    for name, found in compared(results, 2, 1).items():
        if name in random:
            distances[name] = None
            continue
        same = all(sample.shapes[0] == sample.shapes[1] for sample in found)
        apart = distance(found) if same else float("nan")
        distances[name] = number(apart)
        if not apart <= tolerance:
            reasons.append(
                f"output {name!r}: function form and inlined form of the reduced model differ by "
                f"{apart:.1e} (relative L2), more than {tolerance:.0e}"
            )
    return distances


def _below(drift: Drift, what: str, value: float | None, least: float | None) -> list[str]:
    if least is None or value is None or value >= least:
        return []
    return [f"output {drift.output!r}: {what} {value:.5f} is below {least}"]


def _coarsest(path: Path) -> float:
    """The rounding of the model's narrowest weights, where it is half: the two forms are fused differently there."""
    kinds = {value.dtype for value in load(path).graph.initializers.values()}
    return max((size for kind, size in ROUNDING.items() if kind in kinds), default=0.0)


def _floats(before: ir.Model, after: ir.Model, changed: list[bool]) -> tuple[ir.Model, ir.Model]:
    """The two models in forms that take the same floats; notes in `changed` which of them had to change."""
    changed[:] = [own or other for own, other in zip(changed, comparable(before, after), strict=True)]
    return before, after


def _inlined(model: ir.Model) -> ir.Model:
    made = copy(model)
    inline(made, reason="the two forms are compared")
    return made


def _no_bare_nodes(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.domain == DOMAIN and node.op_identifier() not in model.functions:
            raise ModelError(
                f"{describe(node)} of the reduced model has no function body, so ONNX Runtime cannot run it: "
                "check the model that was lowered with --plugin, not what came of it"
            )


def _batches(feed: Sequence[Feed]) -> list[int]:
    return [samples_of(run) for run in feed]


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
