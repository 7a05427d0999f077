"""Where a model's time goes in ONNX Runtime: per transformer block, and per reduction.

Nodes are counted by name. The function bodies are inlined first and every node is named after its group, because the
runtime forgets which call an inlined node came from. What its optimizer makes anew, as a reordering, counts with the
node that ran before. A node's time runs from the end of the node before it, so what the runtime spends between nodes
is counted too.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.errors import TokenrtError
from tokenrt.passes.graph.model import load
from tokenrt.perf.profile import timing
from tokenrt.perf.profile.groups import inlined

KERNEL = "_kernel_time"
TAG = re.compile(r"group(\d+)_")


@dataclass(frozen=True)
class NodeProfile:
    """Means over the middle half of the runs, in milliseconds, by group in the order of the model.

    The middle half by the time of the whole run, and the same runs for every group, so that the groups add up to a run:
    medians of each group, on a machine that is disturbed now and then, add up to less. total: of a whole run. covered: the
    share of it that the groups add up to.
    """

    groups: Mapping[str, float]
    total: float
    covered: float
    runs: int


def labelled(model: ir.Model, known: Mapping[str, str]) -> tuple[ir.Model, list[str]]:
    """A copy without functions whose nodes are named `group<i>_<n>`, and the groups by that i.

    known: groups of the nodes of the unreduced model.
    """
    copy = load(model)
    own = inlined(copy, known)
    order = list(dict.fromkeys(own[node] for node in copy.graph))
    for number, node in enumerate(copy.graph):
        node.name = f"group{order.index(own[node])}_{number}"
    return copy, order


def profile(
    model: ir.Model, known: Mapping[str, str], *, batch: int, runs: int = 20, warm_up: int = 3, threads: int
) -> NodeProfile:
    """Run `model` with the runtime's profiler on and add its nodes up by group.

    Raises: TokenrtError when the runtime does not take the model, or wrote no usable profile.
    """
    copy, order = labelled(model, known)
    with tempfile.TemporaryDirectory(prefix="tokenrt-") as folder:
        opened = timing.session(copy, threads=threads, profile=str(Path(folder) / "nodes"))
        run = timing.runner(opened, timing.feeds(opened, batch))
        for _ in range(warm_up + runs):
            run()
        events = read(Path(opened.end_profiling()))
    whole, parts = split(events, len(order))
    if len(whole) != warm_up + runs:
        raise TokenrtError(f"ONNX Runtime's profile holds {len(whole)} runs, and {warm_up + runs} were made")
    whole, parts = whole[warm_up:], parts[warm_up:]
    typical = np.argsort(whole, kind="stable")[runs // 4 : runs - runs // 4]
    means = np.asarray(parts)[typical].mean(axis=0) / 1e3
    total = float(np.asarray(whole)[typical].mean()) / 1e3
    groups = {name: float(time) for name, time in zip(order, means, strict=True)}
    return NodeProfile(groups, total, float(means.sum()) / total, runs)


def read(path: Path) -> list[Mapping[str, Any]]:
    """The events of a profile file. Raises: TokenrtError for a file that is cut short or is no profile."""
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(events, list) and all("ts" in event and "dur" in event for event in events):
            return events
    except (OSError, ValueError, TypeError) as cause:
        raise TokenrtError(f"{path} is not a profile of ONNX Runtime, or is cut short: {cause}") from cause
    raise TokenrtError(f"{path} is not a profile of ONNX Runtime: expected a list of events with ts and dur")


def split(events: Iterable[Mapping[str, Any]], groups: int) -> tuple[list[float], list[list[float]]]:
    """Microseconds of every run, and of every group in it."""
    events = sorted(events, key=lambda event: event["ts"])
    runs = [event for event in events if event["name"] == "model_run"]
    nodes = [event for event in events if str(event["name"]).endswith(KERNEL)]
    parts = []
    for run in runs:
        first, last = run["ts"], run["ts"] + run["dur"]
        parts.append(_shares([node for node in nodes if first <= node["ts"] <= last], first, groups))
    return [float(run["dur"]) for run in runs], parts


def named_kernels(events: Iterable[Mapping[str, Any]], groups: int, runs: int) -> list[int]:
    """How many kernels of each group one of the runs starts."""
    found = [0] * groups
    for event in events:
        tag = TAG.search(str(event["name"])) if str(event["name"]).endswith(KERNEL) else None
        if tag:
            found[int(tag[1])] += 1
    return [count // runs for count in found]


def _shares(nodes: Sequence[Mapping[str, Any]], start: float, groups: int) -> list[float]:
    shares, end, group = [0.0] * groups, start, 0
    for node in nodes:
        if tag := TAG.search(str(node["name"])):
            group = int(tag[1])
        stop = max(end, node["ts"] + node["dur"])
        shares[group] += stop - end
        end = stop
    return shares
