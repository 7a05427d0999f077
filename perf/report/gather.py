"""The document of a run of `tokenrt tune`: what the run measured, and what is measured of its plans once more, here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tokenrt.errors import TokenrtError
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.checking.check import check
from tokenrt.passes.graph.model import on_disk
from tokenrt.perf.planner.costs import cost_of
from tokenrt.perf.planner.harm import MEASURES, kind_of
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.planner.workbench import answers
from tokenrt.perf.profile.machine import about
from tokenrt.perf.profile.profile import HERE, Profile, profile
from tokenrt.perf.report import commands, look, samples
from tokenrt.perf.report.document import Document, Entry, Evidence, Measures, Model, Sample
from tokenrt.perf.report.measured import check_of, sha256, time_of, work
from tokenrt.perf.report.run import MODEL, Run, Tried

Tell = Callable[[str], None]

SAMPLES = 6
"""Photographs or texts in a report."""

CHECKED = 4
"""Samples at most that the check runs on."""


def of_run(
    run: Run,
    *,
    data: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    most: int = SAMPLES,
    every: bool = True,
    tell: Tell = lambda stage: None,
) -> Document:
    """Gather the document of a run.

    data, model: where they are now, if they moved. most: samples that are shown. every: under every plan; else under those of
    the front alone, which is faster. Raises: TokenrtError where they are not there, or are not those of the run.
    """
    source, given, asked = run.model(model), run.data(data), run.told["asked"]
    tell("answering the data with the unreduced model")
    with Judge.of(
        source,
        given,
        samples=int(asked["samples"]),
        seed=int(run.told["seed"]),
        shape=asked.get("shape"),
        protect=run.tried[0].plan.wanted if run.tried else None,
        threads=asked.get("threads"),
    ) as judge:
        if judge.key != run.told["key"]:
            raise TokenrtError(
                f"{source} or {given} are not what the run saw, or tokenrt or ONNX Runtime have another version since: a report "
                "would mix two runs. Give the same with --model and --data, or run `tokenrt tune` again"
            )
        return _Gathering(run, judge, source, every, tell).document(given, most)


@dataclass
class _Gathering:
    """A run, the model it reduced, and the reasons for what its report lacks so far."""

    run: Run
    judge: Judge
    source: Path
    every: bool
    tell: Tell

    def document(self, data: Path, most: int) -> Document:
        told, best = self.run.told, self.run.best
        shown, missing = self._samples(data, most)
        entries = [self._entry(place, tried, len(shown)) for place, tried in enumerate(self.run.tried)]
        if shown and not any(any(each.views) for each in entries):
            shown, missing["samples"] = (
                [],
                "no plan tells of its tokens sample by sample, so that none can be drawn",
            )
        if best is None:
            missing |= dict.fromkeys(("time", "checks"), "no plan was made that could be timed or checked")
        else:
            with self._model(self.run.tried[best]) as reduced:
                entries[best] = replace(entries[best], **self._measured(reduced, missing))
        structure = self._structure()
        return Document(
            kind="tune",
            title=f"{self.source.stem}: {_wish(told)}",
            verdict=told["verdict"],
            state=told["state"],
            model=Model(
                self.source.name,
                structure.tokens,
                structure.protect,
                len(structure.blocks),
                tuple(structure.grid) if structure.grid else None,
            ),
            measures=Measures(told["cost"], self._harm(), self._evidence()),
            entries=entries,
            first=best,
            unreduced=work(cost_of(self.judge.bench.reducer.prepared.model)),
            samples=shown,
            notes=[f"{name}: left out, {why}" for name, why in told.get("left_out", {}).items()],
            commands=commands.of_run(self.run),
            manifest=self._manifest(),
            missing=missing,
            made=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _structure(self) -> Structure:
        best = self.run.best
        number = 0 if best is None else look.shown(self.run.tried[best].plan)
        return self.judge.bench.reducer.prepared.transformers[number]

    def _samples(self, data: Path, most: int) -> tuple[list[Sample], dict[str, str]]:
        """What is shown, or why nothing is."""
        found, why = samples.fitting(data, min(most, int(self.run.told["samples"])), self._structure())
        return found, {"samples": why} if why else {}

    def _entry(self, place: int, tried: Tried, most: int) -> Entry:
        self.tell(f"plan {place + 1} of {len(self.run.tried)}: {tried.name}")
        bench, told = self.judge.bench, tried.front or place == self.run.best
        count = len(next(iter(self.judge.data[0].values())))
        runs = self.judge.data[: -(-most // count)] if told or self.every else ()
        twins = sum(each.name == tried.name for each in self.run.tried)
        return Entry(
            name=f"{tried.name}, plan {place}" if twins > 1 else tried.name,
            cost=tried.cost,
            harm=tried.harm,
            interval=tried.interval,
            harms=tried.harms,
            sites=len(tried.plan.sites) + len(tried.plan.outputs),
            spec=tried.plan.spec(),
            file=f"plans/{place}.toml" if tried.front else "",
            front=tried.front,
            recommended=place == self.run.recommended,
            flow=look.steps(tried.plan),
            views=look.look(bench, tried.plan, runs, most) if runs else (),
            work=work(cost_of(bench.reducer.reduce(tried.plan).model)) if told else None,
        )

    @contextmanager
    def _model(self, tried: Tried) -> Iterator[Path]:
        """The file of the model of a plan: the run's own where it wrote one."""
        written = self.run.folder / MODEL
        if written.exists():
            yield written
        else:
            with on_disk(self.judge.bench.reducer.reduce(tried.plan).model) as path:
                yield path

    def _measured(self, reduced: Path, missing: dict[str, str]) -> dict[str, Any]:
        """Time and check of a reduced model; what cannot be had is written into `missing`."""
        told, found = self.run.told, dict[str, Any]()
        self.tell("timing, block by block")
        try:
            made = profile(
                reduced, original=self.source, batch=int(told["batch"]), threads=told["asked"].get("threads")
            )
            assert isinstance(made, Profile)
            found["time"] = time_of(made)
        except TokenrtError as why:
            missing["time"] = f"it could not be timed here: {why}"
        self.tell("checking")
        try:
            first = {name: array[:CHECKED] for name, array in self.judge.data[0].items()}
            report = check(self.source, reduced, data=first)
            found["check"] = check_of(report, f"the first of {told['data']}")
        except TokenrtError as why:
            missing["checks"] = f"it could not be checked here: {why}"
        return found

    def _harm(self) -> str:
        """What harm is, of the outputs that it is taken from."""
        (first,) = answers(self.judge.bench.original(), self.judge.data[:1])
        arrays = {name: array for name, array in first.items() if array.dtype.kind == "f"}
        kinds = {name: kind_of(name, array) for name, array in arrays.items() if array.ndim}
        words = {kind: [name for name, own in kinds.items() if own == kind] for kind in kinds.values()}
        each = "; ".join(f"{MEASURES[kind]} ({', '.join(names)})" for kind, names in words.items())
        return f"{each}; of the worst output, averaged over {self.run.told['samples']} samples"

    def _evidence(self) -> Evidence:
        if self.run.told.get("unreduced_ms") is None:
            return "counted"
        return "predicted" if self.run.told.get("target") in (None, HERE) else "modelled"

    def _manifest(self) -> dict[str, dict[str, str]]:
        told = self.run.told
        own = {"versions": told.get("versions"), "machine": told.get("machine")}
        found: dict[str, dict[str, str]] = {
            "Model": {
                "file": told["model"],
                "sha256": sha256(self.source),
                "bytes": f"{self.source.stat().st_size:,}",
            },
            "Run": {
                "data": told["data"],
                "wish": told["wish"]["words"],
                "methods": ", ".join(told["methods"]),
                "cost": told["cost"],
                "seed": str(told["seed"]),
                "plans tried": str(len(self.run.tried)),
                "content": told["key"],
            },
        }
        if (self.run.folder / MODEL).exists():
            found["Reduced model"] = {"file": MODEL, "sha256": sha256(self.run.folder / MODEL)}
        here = about()
        for name, heading in (("versions", "Versions"), ("machine", "Machine")):
            found[heading] = dict(own[name] or {})
            if own[name] != here[name]:
                found[f"{heading} of the report"] = here[name]
        return {heading: facts for heading, facts in found.items() if facts}


def _wish(told: Mapping[str, Any]) -> str:
    words: str = told["wish"]["words"]
    return words
