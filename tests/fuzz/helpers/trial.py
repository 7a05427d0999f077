"""One trial: a seed, the changes made to it, a method and a budget; and what became of it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper

from tests.fuzz.helpers import seeds
from tests.fuzz.helpers.changes import CHANGES, ENDS
from tests.fuzz.helpers.changes.files import EXTERNAL, STATED
from tests.fuzz.helpers.edit import Edit, _inferred
from tests.fuzz.helpers.seeds import Array
from tests.passes.helpers.offered import Site, sites
from tests.passes.helpers.running import session
from tokenrt.errors import NothingToDoError, ShapeError, TokenrtError, UnsupportedError
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.passes.report import Reduced

SAME, CLOSE = 2e-5, 1e-4
"""How far outputs may lie apart, in parts of the largest entry: of a changed graph, and of one reduced."""

BUDGETS: Mapping[str, Budget] = {"remove 3": Budget.remove(3), "remove 6 at 0": Budget.remove(6, [0])}

GOOD = frozenset({"equal", "refused", "fewer", "guarded", "more"})
"""Outcomes that are right: the same outputs, a refusal by name, or of some blocks; more tokens protected than in the seed, by
name, and the same outputs as the seed with these protected; and more than the seed itself takes."""

FAULTS = {
    kind: type(f"{''.join(word.title() for word in kind.split())}Error", (AssertionError,), {})
    for kind in ("different", "other sites", "outputs", "internal", "unnamed", "crash", "offered", "withheld")
}
"""Outcomes that are faults, each an error of its own: other numbers, sites or outputs than the unchanged seed's; a refusal
that is an inner error, or names nothing; no refusal at all; a site that `inspect` offers and `reduce` refuses, or the reverse."""

INTERNAL = re.compile(
    "shape inference|not valid ONNX|constant folding refuses|InferenceError|instead is null|op_type:|cannot be proven|Traceback"
)

Outputs = Mapping[str, Array]
Step = tuple[str, int]
Counts = tuple[tuple[int, int, int], ...]
"""(tokens, protected, blocks) of each transformer."""


@dataclass(frozen=True)
class Trial:
    """steps: changes by name, each with its own seed. method and budget: what is asked of `reduce`."""

    model: str
    steps: tuple[Step, ...]
    method: str = "slice"
    budget: str = "remove 3"

    def text(self) -> str:
        entries = {"model": self.model, "steps": self.steps, "method": self.method, "budget": self.budget}
        return json.dumps(entries) + "\n"

    @classmethod
    def read(cls, text: str) -> Trial:
        entries = json.loads(text)
        return cls(**{**entries, "steps": tuple((name, seed) for name, seed in entries["steps"])})

    @cached_property
    def changed(self) -> Changed:
        return change(self.model, self.steps)


@dataclass(frozen=True)
class Changed:
    """A changed seed, and as it was when only its ends had been changed. steps: those there was a place for."""

    proto: onnx.ModelProto
    ends: onnx.ModelProto
    steps: tuple[Step, ...]
    rows: int


@dataclass(frozen=True)
class Outcome:
    """What became of a trial, with a word on it."""

    kind: str
    told: str = ""

    @property
    def good(self) -> bool:
        return self.kind in GOOD


class ChangesTheModelError(AssertionError):
    """A change is at fault: the graph computes something else, or is no model any more."""


def change(name: str, steps: Sequence[Step]) -> Changed:
    """Make the changes, those of the ends first. Raises: ChangesTheModelError naming the one that ONNX Runtime minds."""
    proto = ends = seeds.model(name)
    ordered = [step for step in steps if step[0] in ENDS] + [step for step in steps if step[0] not in ENDS]
    made: list[Step] = []
    for step in ordered:
        edit = Edit(proto, step[1])
        if not CHANGES[step[0]](edit):
            continue
        proto = edit.proto()
        made.append(step)
        if step[0] in ENDS:
            ends = proto
    return Changed(proto, ends, tuple(made), _rows(proto))


def _rows(proto: onnx.ModelProto) -> int:
    """The batch the model is fed: its own where that is fixed."""
    return proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value or seeds.BATCH


def check_changes(name: str, changed: Changed) -> None:
    """Whether the changed graph computes what the seed does, in ONNX Runtime. Raises: ChangesTheModelError."""
    given = seeds.feeds(name, changed.rows)
    try:
        onnx.checker.check_model(changed.proto)
        found = run(changed.proto, given)
    except Exception as cause:
        raise ChangesTheModelError(f"{changed.steps} on {name}: {cause}") from cause
    before = run(changed.ends, given) if changed.ends is not seeds.model(name) else {}
    for expected in (_cut(original(name), changed.rows), before):
        if (worst := apart(found, expected)) > SAME:
            raise ChangesTheModelError(f"{changed.steps} on {name}: outputs move by {worst:.2g}")


@cache
def original(name: str) -> Outputs:
    return run(seeds.model(name), seeds.feeds(name))


def _cut(outputs: Outputs, rows: int) -> Outputs:
    """The first pictures of the outputs of a seed, whose first axis is always the batch."""
    return {name: value[:rows] for name, value in outputs.items()}


def run(model: Any, given: Mapping[str, Array]) -> Outputs:
    made = session(model)
    names = [item.name for item in made.get_outputs()]
    wanted = {item.name for item in made.get_inputs()}
    return dict(zip(names, made.run(None, {key: given[key] for key in wanted}), strict=True))


def apart(found: Outputs, wanted: Outputs) -> float:
    """The largest difference of the outputs in both, in parts of the largest entry; infinite where one is missing."""
    worst = 0.0
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape:
            return np.inf
        scale = max(float(np.abs(value).max()), 1e-6)
        gap = float(np.abs(found[name].astype(np.float64) - value).max())
        worst = max(worst, gap / scale if np.isfinite(gap) else np.inf)
    return worst


@contextmanager
def written(proto: onnx.ModelProto) -> Iterator[Path]:
    """The model as a file, with its weights beside it or shapes stated where a change asked for that."""
    asked = {entry.key for entry in proto.metadata_props}
    stored = _inferred(proto) if STATED in asked else onnx.ModelProto.FromString(proto.SerializeToString())
    kept = [entry for entry in stored.metadata_props if entry.key not in (EXTERNAL, STATED)]
    del stored.metadata_props[:]
    stored.metadata_props.extend(kept)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "changed.onnx"
        if EXTERNAL in asked:
            onnx.save_model(
                stored, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
            )
        else:
            path.write_bytes(stored.SerializeToString())
        yield path


def _reduced(proto: onnx.ModelProto, **asked: Any) -> Reduced | TokenrtError:
    with written(proto) as path:
        try:
            return reduce(path, **asked)
        except TokenrtError as error:
            return error


@cache
def seed_reduced(name: str, method: str, budget: str) -> Reduced | None:
    """The unchanged seed reduced, or None where it is refused."""
    made = _reduced(seeds.model(name), method=method, budget=BUDGETS[budget])
    return None if isinstance(made, TokenrtError) else made


@cache
def wanted(name: str, method: str, budget: str) -> tuple[tuple[Any, ...], Outputs] | None:
    """Where the unchanged seed is reduced, and its outputs then, or None where it is refused."""
    made = seed_reduced(name, method, budget)
    return None if made is None else (_places(made), run(made.model, seeds.feeds(name)))


def _places(made: Reduced) -> tuple[Any, ...]:
    """(tokens, protected, blocks) of each transformer, and the sites."""
    counts = tuple((each.tokens, each.protect, each.blocks) for each in made.plan.transformers)
    return counts, made.plan.sites


def _guarded(trial: Trial, changed: Changed, found: Outputs) -> bool:
    """Whether the changed graph protects more, says at which nodes, and gives what the seed does with these protected."""
    with written(changed.proto) as path:
        seen = inspect(path).transformers
    if len(seen) != 1 or not all(_names("", str(guard), changed.proto) for guard in seen[0].guards):
        return False
    kept = [position for guard in seen[0].guards for position in guard.positions]
    beside = _reduced(
        seeds.model(trial.model), method=trial.method, budget=BUDGETS[trial.budget], protect=sorted(set(kept))
    )
    if isinstance(beside, TokenrtError):
        return False
    return apart(found, _cut(run(beside.model, seeds.feeds(trial.model)), changed.rows)) <= CLOSE


def _fewer(found: Counts, wanted: Counts) -> bool:
    """Whether these are the transformers that are wanted without some of them, or of their blocks, and nothing else."""
    blocks, most = (
        {(tokens, protect): blocks for tokens, protect, blocks in counts} for counts in (found, wanted)
    )
    return blocks != most and all(count <= most.get(kind, 0) for kind, count in blocks.items())


@cache
def wanted_at(name: str, transformer: int, block: int, where: str) -> Outputs | None:
    asked = _one_site(transformer, block, where)
    made = _reduced(seeds.model(name), **asked)
    return None if isinstance(made, TokenrtError) else run(made.model, seeds.feeds(name))


def judge(trial: Trial) -> Outcome:
    """Make the changes, check them, reduce, and compare with the unchanged seed reduced."""
    changed = trial.changed
    check_changes(trial.model, changed)
    try:
        made = _reduced(changed.proto, method=trial.method, budget=BUDGETS[trial.budget])
    except Exception as crash:
        return Outcome("crash", f"{type(crash).__name__}: {crash}")
    if isinstance(made, TokenrtError):
        return refusal(made, changed.proto)
    expected = wanted(trial.model, trial.method, trial.budget)
    return _compared(trial, changed, made, expected)


def _compared(
    trial: Trial, changed: Changed, made: Reduced, expected: tuple[tuple[Any, ...], Outputs] | None
) -> Outcome:
    given = seeds.feeds(trial.model, changed.rows)
    try:
        found = run(made.model, given)
    except Exception as cause:
        return Outcome("crash", f"ONNX Runtime: {cause}")
    listed = [value.name for value in changed.proto.graph.output]
    if [*found] != listed:
        return Outcome("outputs", f"the outputs were {listed} and are {[*found]}")
    if expected is None:
        return Outcome("more")
    where, outputs = expected
    if _places(made) != where and _guarded(trial, changed, found):
        return Outcome("guarded")
    if _places(made) != where:
        said = [
            f"{site.place()}: {site.reason}"
            for site in made.report.sites
            if site.block < 0 and _names(site.place(), site.reason, changed.proto)
        ]
        kind = "fewer" if said and _fewer(_places(made)[0], where[0]) else "other sites"
        return Outcome(kind, f"{_places(made)}, not {where}; said: {said}")
    worst = apart(found, _cut(outputs, changed.rows))
    if worst > CLOSE:
        return Outcome("different", f"the outputs lie {worst:.2g} apart")
    if changed.ends is not seeds.model(trial.model):
        beside = _reduced(changed.ends, method=trial.method, budget=BUDGETS[trial.budget])
        if isinstance(beside, Reduced) and (worst := apart(found, run(beside.model, given))) > CLOSE:
            return Outcome("different", f"an added output lies {worst:.2g} apart")
    return Outcome("equal")


def refusal(error: TokenrtError, proto: onnx.ModelProto) -> Outcome:
    """Whether a refusal is one that a user can work with: of a kind meant for models, in plain words, naming a node."""
    told = f"{type(error).__name__}: {error}"
    if not isinstance(error, UnsupportedError | NothingToDoError | ShapeError) or INTERNAL.search(str(error)):
        return Outcome("internal", told)
    return Outcome("refused" if _names("", str(error), proto) else "unnamed", told)


def _names(place: str, text: str, proto: onnx.ModelProto) -> bool:
    """Whether a refusal names a node or a value of the graph."""
    return any(
        f"{name!r}" in place + text or f"'{name}'" in place + text for name in _every_name(proto.graph)
    )


def _every_name(graph: onnx.GraphProto) -> set[str]:
    found = {value.name for value in (*graph.input, *graph.initializer)}
    for node in graph.node:
        found |= {node.name, *node.output}
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found |= _every_name(attribute.g)
    return found - {""}


def _one_site(transformer: int, block: int, where: str) -> dict[str, Any]:
    budget = Budget.remove(1, [block])
    return {"method": "slice", "budget": budget, "site": where, "transformers": [transformer]}


def offered(trial: Trial, only: int | None = None) -> list[Outcome]:
    """What `reduce` with slice says to each site, which `inspect` offers or not; or to one of them, counted from `only`."""
    changed = trial.changed
    with written(changed.proto) as path:
        try:
            seen = inspect(path)
        except TokenrtError as error:
            return [refusal(error, changed.proto)]
        except Exception as crash:
            return [Outcome("crash", f"inspect: {type(crash).__name__}: {crash}")]
    tried = sites(seen)
    if only is not None and tried:
        tried = [tried[only % len(tried)]]
    blocks = sum(len(transformer.blocks) for transformer in seen.transformers)
    return [_at(trial, changed, *each, compare=blocks == seeds.BLOCKS) for each in tried]


def _at(trial: Trial, changed: Changed, site: Site, offered: bool, compare: bool) -> Outcome:
    place = f"transformer {site[0]} block {site[1]} {site[2]}"
    try:
        made = _reduced(changed.proto, **_one_site(*site))
    except Exception as crash:
        return Outcome("crash", f"{place}: {type(crash).__name__}: {crash}")
    if isinstance(made, TokenrtError):
        told = f"{place}: {type(made).__name__}: {made}"
        return Outcome("offered", told) if offered else Outcome("refused", told)
    if not offered:
        return Outcome("withheld", place)
    expected = wanted_at(trial.model, *site) if compare else None
    if expected is None:
        return Outcome("more")
    try:
        found = run(made.model, seeds.feeds(trial.model, changed.rows))
    except Exception as cause:
        return Outcome("crash", f"{place}: ONNX Runtime: {cause}")
    worst = apart(found, _cut(expected, changed.rows))
    return (
        Outcome("equal")
        if worst <= CLOSE
        else Outcome("different", f"{place}: the outputs lie {worst:.2g} apart")
    )
