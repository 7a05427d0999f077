"""What ToMe costs beside what it removes: DeiT-S with `tome --remove 13` against a model that merely slices as many tokens off.

Both run the same blocks on the same token counts, so the ratio is the cost of matching and merging alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench import results, roles
from tokenrt.perf.bench.models import DEIT_S, exported
from tokenrt.perf.bench.roles import Share
from tokenrt.perf.profile import timing
from tokenrt.perf.profile.timing import Ratio

if TYPE_CHECKING:
    from rich.table import Table

REMOVED = 13
TARGETS = {8: 1.03, 1: 1.10}
"""Batch size -> the most that ToMe may take, in times of the floor."""

FLOOR, TOME, PLAIN, WHOLE = "slice", "tome", "tome without proportional attention", "unreduced"
GIVEN = "tome, its pairs given"
"""ToMe whose pairs are constants: what merging any pairs and keeping their sizes costs, without finding them."""

CONSTANT_PAIRS = """
    others = Constant <value_ints: ints = @others> ()
    sources = Constant <value_ints: ints = @sources> ()
    destinations = Constant <value_ints: ints = @destinations> ()
    kept = Constant <value_ints: ints = @keep> ()
    removed = Constant <value_ints: ints = @remove> ()
    start = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    shape = Shape (metric)
    images = Slice (shape, start, one)
    listed = Concat <axis = 0> (others, destinations, sources)
    end = Add (kept, removed)
    first = Slice (listed, start, kept)
    last = Slice (listed, kept, end)
    n_sources = Shape (sources)
    shape_value = Concat <axis = 0> (images, n_sources)
    shape_keep = Concat <axis = 0> (images, kept)
    shape_removed = Concat <axis = 0> (images, removed)
    nothing = Constant <value_float = 0.0> ()
    value = Expand (nothing, shape_value)
    keep = Expand (first, shape_keep)
    source = Expand (last, shape_removed)
    slots = Slice (destinations, start, removed)
    destination = Expand (slots, shape_removed)
"""
"""A body for TokenMatch that looks at nothing: the last sources leave, for slots of destinations."""
ROUNDS = {8: 8, 1: 40}
REPEATS = 12
"""Times all sessions are made anew."""
PROFILED = {8: 15, 1: 60}

ROLES = {**roles.ROLES, "tokenrt_block": "keys averaged over heads"}
"""What the name of a node begins with or holds -> what the node is there for; ToMe has no other steps of its own."""


@dataclass(frozen=True)
class TomeCost:
    """Ratios by batch size, and where the time of the ToMe model goes."""

    ratios: Mapping[int, Mapping[str, Ratio]]
    shares: Mapping[int, Sequence[Share]]
    threads: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": DEIT_S,
            "removed_per_block": REMOVED,
            "threads": self.threads,
            "targets": {str(batch): most for batch, most in TARGETS.items()},
            "ratios": {
                str(b): [ratio.as_dict() for ratio in found.values()] for b, found in self.ratios.items()
            },
            "breakdown": {str(b): [share.as_dict() for share in found] for b, found in self.shares.items()},
        }

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(self._ratios(), *(self._breakdown(batch) for batch in self.shares))

    def _ratios(self) -> Table:
        from rich.table import Table

        table = Table(title=f"DeiT-S, tome --remove {REMOVED}, ONNX Runtime CPU, {self.threads} threads")
        for head in ("batch", "model", f"times {FLOOR}", "95 % interval", "at most", "rounds"):
            table.add_column(head, justify="left" if head == "model" else "right")
        for batch, found in self.ratios.items():
            for name, ratio in found.items():
                most = f"{TARGETS[batch]:.2f}" if name == TOME and batch in TARGETS else ""
                interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
                table.add_row(str(batch), name, f"{ratio.median:.3f}", interval, most, str(ratio.rounds))
        return table

    def _breakdown(self, batch: int) -> Table:
        title = f"batch {batch}: time of the nodes, profiler on"
        return results.shown(roles.HEAD, roles.rows(self.shares[batch]), title)

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        rows = [
            [
                str(batch),
                name,
                f"{ratio.median:.3f}",
                f"{ratio.low:.3f} to {ratio.high:.3f}",
                f"{TARGETS[batch]:.2f}" if name == TOME and batch in TARGETS else "",
            ]
            for batch, found in self.ratios.items()
            for name, ratio in found.items()
        ]
        head = ["batch:", "model", f"time, in times of `{FLOOR}`:", "95 % interval", "at most:"]
        parts = [
            "# What ToMe costs",
            f"DeiT-S (random weights, 224 px), `tome --remove {REMOVED}`, against the floor: `{FLOOR}` with the same token "
            f"counts. ONNX Runtime CPU, {self.threads} threads; medians of the ratios of paired runs in one process, with the "
            f"sessions made anew {REPEATS} times. Made by `python -m tokenrt.perf.bench tome`.",
            results.table(head, rows),
            f"`{GIVEN}` has constants for the pairs: it finds nothing, and still gathers the survivors in ToMe's order, copies "
            "all tokens once more to have the merged rows behind them, and adds log size to every score. What it takes above "
            f"`{FLOOR}` is what this lowering pays for any pairs, however they are found.",
            "## What the rest is made of",
            "Time by what a node is there for, with ONNX Runtime's profiler on (which adds a little to every node).",
        ]
        for batch, found in self.shares.items():
            parts += [
                f"Batch {batch}:",
                results.table(roles.HEAD, roles.rows(found)),
            ]
        return "\n\n".join([*parts, results.told(where)])


def run(
    *, threads: int | None = None, rounds: Mapping[int, int] | None = None, repeats: int = REPEATS
) -> TomeCost:
    """Reduce, time in pairs, profile. Raises: TokenrtError when the model cannot be exported."""
    from tokenrt.passes.reduce import reduce

    source, budget = exported(DEIT_S), Budget.remove(REMOVED)
    used = threads or timing.default_threads()
    with tempfile.TemporaryDirectory(prefix="tokenrt-bench-") as name:
        folder = Path(name)
        models = {key: folder / f"{place}.onnx" for place, key in enumerate((FLOOR, TOME, PLAIN))}
        reduce(source, method="slice", budget=budget, output=models[FLOOR])
        tome = reduce(source, method="tome", budget=budget, output=models[TOME])
        reduce(source, method="tome", budget=budget, proportional_attention=False, output=models[PLAIN])
        models[GIVEN] = _with_given_pairs(models[TOME], folder / "given.onnx")
        models[WHOLE] = source
        ratios, shares = {}, {}

        def opened(batch: int) -> Mapping[str, timing.Run]:
            sessions = {key: timing.session(path, threads=used) for key, path in models.items()}
            data = timing.feeds(sessions[FLOOR], batch)
            return {key: timing.runner(item, data) for key, item in sessions.items()}

        for batch, most in (rounds or ROUNDS).items():
            make = partial(opened, batch)
            ratios[batch] = timing.compare_afresh(make, base=FLOOR, rounds=most, repeats=repeats)
        for batch in ratios:
            shares[batch] = roles.breakdown(tome.model, batch, used, PROFILED.get(batch, 20), ROLES)
    return TomeCost(ratios, shares, used)


def _with_given_pairs(path: Path, output: Path) -> Path:
    """The same model with CONSTANT_PAIRS as the body of TokenMatch."""
    import onnx

    from tokenrt.passes.ops import OPERATORS

    model = onnx.load(path)
    (matching,) = (function for function in model.functions if function.name == "TokenMatch")
    opset = next(entry.version for entry in matching.opset_import if not entry.domain)
    matching.CopyFrom(replace(OPERATORS["TokenMatch"], body=CONSTANT_PAIRS).function(opset))
    onnx.save(model, output)
    return output
