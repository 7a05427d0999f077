"""What choosing tokens one after the other costs: against NumPy, as a share of a tower that the tokens come from, and on GPUs.

`python -m tokenrt.perf.bench greedy` times in a process of its own, where products of NumPy have one thread as sessions have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes.ops import DOMAIN, OPERATORS, VERSION
from tokenrt.passes.ops.contract import Array
from tokenrt.passes.ops.token_greedy_select import MAX_MIN, MAX_SUM, MOST_IMPORTANT, MOST_ISOLATED
from tokenrt.perf.bench import results
from tokenrt.perf.bench.models import exported
from tokenrt.perf.profile import timing
from tokenrt.perf.profile.timing import Ratio

if TYPE_CHECKING:
    import onnx_ir as ir
    from rich.table import Table

TOWER = "timm:vit_large_patch14_clip_336"
TOKENS, WIDTH, KEPT = 576, 1024, 64
MOST = 3.0
"""What an operator as ONNX Runtime runs it may take, in times of NumPy."""
ROUNDS, TOWER_ROUNDS, OPSET, HALF = 30, 8, 18, 2
CAPABILITY, TARGETS = "8.9", ("orin-nano", "l4", "a100", "h100")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def _farthest(similar: Array, importance: Array) -> list[int]:
    """Each time the token whose nearest chosen one is farthest, the most isolated one first."""
    apart = similar.copy()
    np.fill_diagonal(apart, -2)
    state, chosen = np.full(len(similar), -2, np.float32), [int(apart.max(axis=1).argmin())]
    while len(chosen) < KEPT:
        np.maximum(state, similar[chosen[-1]], out=state)
        state[chosen[-1]] = np.inf
        chosen.append(int(state.argmin()))
    return chosen


def _unlike_all(similar: Array, importance: Array) -> list[int]:
    """Each time the token of the least sum of cosines to all chosen ones, the most important one first."""
    state, chosen = np.zeros(len(similar), np.float32), [int(importance.argmax())]
    while len(chosen) < KEPT:
        state += similar[chosen[-1]]
        state[chosen[-1]] = np.inf
        chosen.append(int(state.argmin()))
    return chosen


def _covering(similar: Array, importance: Array) -> list[int]:
    """Each time the token that covers most of what no chosen one does, times its importance."""
    cover, weight, chosen = np.zeros(len(similar), np.float32), importance.copy(), list[int]()
    while len(chosen) < KEPT:
        chosen.append(int((weight * np.maximum(similar - cover, 0).sum(axis=1)).argmax()))
        cover = np.maximum(cover, similar[chosen[-1]])
        weight[chosen[-1]] = -1
    return chosen


def _spanning(similar: Array, importance: Array) -> list[int]:
    """Each time the token that adds most to the determinant of cos (1/2 + a a'), by a Cholesky factorisation."""
    kernel = similar * (np.float32(0.5) + np.outer(importance, importance))
    left, chosen = np.diagonal(kernel).copy(), list[int]()
    factor = np.zeros((KEPT, len(kernel)), np.float32)
    for turn in range(KEPT):
        best = int(left.argmax())
        chosen.append(best)
        factor[turn] = (kernel[best] - factor[:turn, best] @ factor[:turn]) / np.sqrt(left[best])
        left -= factor[turn] ** 2
        left[best] = -np.inf
    return chosen


@dataclass(frozen=True)
class Choice:
    """An objective: its operator and attributes, the method known for it, and the same choice in NumPy, of cosines [N,N]."""

    operator: str
    attributes: Mapping[str, Any]
    known: str
    plain: Callable[[Array, Array], list[int]]

    @property
    def settled(self) -> dict[str, Any]:
        return OPERATORS[self.operator].settle({"keep": KEPT, "protect": 0, "order": 0, **self.attributes})

    def model(self, kind: Any = np.float32) -> ir.Model:
        """A model of this operator alone, whose metric has this type."""
        import onnx
        import onnx_ir as ir
        from onnx import helper

        operator = OPERATORS[self.operator]
        types = helper.np_dtype_to_tensor_dtype(np.dtype(kind)), onnx.TensorProto.FLOAT
        shapes = [1, TOKENS, WIDTH], [1, TOKENS]
        given = [
            helper.make_tensor_value_info(name, *like)
            for name, like in zip(operator.inputs, zip(types, shapes, strict=True), strict=True)
        ]
        index = helper.make_tensor_value_info("index", onnx.TensorProto.INT64, [1, KEPT])
        node = helper.make_node(
            self.operator, list(operator.inputs), ["index"], domain=DOMAIN, **self.settled
        )
        return ir.serde.deserialize_model(
            helper.make_model(
                helper.make_graph([node], "choice", given, [index]),
                opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
                functions=[operator.function(OPSET)],
                ir_version=10,
            )
        )

    def numpy(self, metric: Array, importance: Array) -> Array:
        """Chosen by NumPy in float32, in ascending order: [1,K]."""
        unit = metric[0] / np.linalg.norm(metric[0], axis=1, keepdims=True)
        return np.sort(np.array([self.plain(unit @ unit.T, importance[0])]), axis=1)


_GREEDY = {"power": 0.0, "mix": 0.0}
CHOICES: Mapping[str, Choice] = {
    "max-min": Choice(
        "TokenGreedySelect", {**_GREEDY, "objective": MAX_MIN, "seed": MOST_ISOLATED}, "divprune", _farthest
    ),
    "max-sum": Choice(
        "TokenGreedySelect", {**_GREEDY, "objective": MAX_SUM, "seed": MOST_IMPORTANT}, "todre", _unlike_all
    ),
    "facility location": Choice("TokenCoverSelect", {"power": 1.0, "mix": 0.0}, "scope", _covering),
    "determinant": Choice("TokenDeterminantSelect", {"mix": 0.5, "epsilon": 0.0}, "cdpruner", _spanning),
}


@dataclass(frozen=True)
class OnGpus:
    """Of a choice: engine layers of its function, launches of function and plugin, and microseconds of both by GPU, modelled."""

    layers: int
    launches: int
    function: Mapping[str, float]
    plugin_launches: int
    plugin: Mapping[str, float]


@dataclass(frozen=True)
class GreedyCost:
    """By objective: time over NumPy's, time over the tower's, and what the builder and the model say of GPUs."""

    against: Mapping[str, Ratio]
    shares: Mapping[str, Ratio]
    gpus: Mapping[str, OnGpus]

    def as_dict(self) -> dict[str, Any]:
        return {
            "tokens": TOKENS, "width": WIDTH, "kept": KEPT, "batch": 1, "threads": 1, "tower": TOWER, "at_most": MOST,
            "against_numpy": {name: ratio.as_dict() for name, ratio in self.against.items()},
            "share_of_tower": {name: ratio.as_dict() for name, ratio in self.shares.items()},
            "gpus": {"evidence": "layers counted, the rest a model, unmeasured"}
            | {name: vars(found) for name, found in self.gpus.items()},
        }  # fmt: skip

    def _times(self) -> list[list[str]]:
        return [
            [
                name,
                f"`{CHOICES[name].operator}`",
                f"`{CHOICES[name].known}`",
                f"{ratio.milliseconds:.1f}",
                f"{ratio.base_milliseconds:.1f}",
                f"{ratio.median:.2f}",
                f"{ratio.low:.2f} to {ratio.high:.2f}",
                f"{100 * self.shares[name].median:.2f} %",
            ]
            for name, ratio in self.against.items()
        ]

    def _on_gpus(self) -> list[list[str]]:
        return [
            [
                name,
                str(found.layers),
                str(found.launches),
                str(found.plugin_launches),
                *(f"{found.function[chip]:.0f} / {found.plugin[chip]:.0f}" for chip in TARGETS),
            ]
            for name, found in self.gpus.items()
        ]

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(_rich("ONNX Runtime CPU", HEAD, self._times()), _rich("GPUs", GPU_HEAD, self._on_gpus()))

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        (tower,) = {ratio.base_milliseconds for ratio in self.shares.values()}
        paired, beside = (next(iter(part.values())).rounds for part in (self.against, self.shares))
        parts = [
            "# What choosing one after the other costs",
            f"{KEPT} of {TOKENS} tokens of width {WIDTH}, one image, one thread. Made by `python -m tokenrt.perf.bench greedy`.",
            "## ONNX Runtime, CPU",
            f"The operator's function against an implementation in NumPy, in float32, of whose time it may take {MOST:g} times: "
            f"medians of the ratios of {paired} paired rounds, in a process of its own; both choose the same tokens. The last "
            f"column is the share of {TOWER} (random weights, {tower / 1e3:.1f} s), of {beside} paired rounds.",
            results.table(HEAD, self._times()),
            "## GPUs",
            "Layers: engine layers that the builder of TensorRT-RTX makes of the operator alone, its metric in float16, for "
            f"capability {CAPABILITY}; one in the loop counts once. **The rest is a model, unmeasured: nothing here ran "
            "on a GPU.** Launches: of the function in all its turns, without what the loop copies, and of the plugin. Then "
            "microseconds of both, function / plugin.",
            results.table(GPU_HEAD, self._on_gpus()),
        ]
        return "\n\n".join([*parts, results.told(where)])


HEAD = ["objective", "operator", "method", "ms:", "NumPy, ms:", "ratio:", "95 % interval", "of the tower:"]
GPU_HEAD = ["objective", "layers:", "launches:", "of the plugin:", *(f"{name}:" for name in TARGETS)]


def _rich(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return results.shown(head, rows, f"{title}, {KEPT} of {TOKENS} tokens, width {WIDTH}")


def run(
    tower: str | Path | None = None, *, rounds: int = ROUNDS, tower_rounds: int = TOWER_ROUNDS
) -> GreedyCost:
    """Time in a process of its own, count, estimate. tower: a file in place of TOWER.

    Raises: TokenrtError where the tower cannot be exported or the two forms choose differently, DependencyError without
    TensorRT-RTX.
    """
    path = exported(TOWER) if tower is None else tower
    command = [
        sys.executable,
        "-m",
        "tokenrt.perf.bench.cpu.greedy",
        str(path),
        str(rounds),
        str(tower_rounds),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD)
    if done.returncode:
        raise TokenrtError(f"nothing was timed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    against, shares = (
        {name: Ratio(**ratio) for name, ratio in found.items()} for found in json.loads(done.stdout)
    )
    return GreedyCost(against, shares, {name: on_gpus(choice) for name, choice in CHOICES.items()})


def on_gpus(choice: Choice) -> OnGpus:
    """Count the layers of a choice and ask the model of cost. Raises: DependencyError without TensorRT-RTX."""
    from tokenrt.passes.forms.bodies import for_gpu, shapes_of
    from tokenrt.perf.cost import fusion
    from tokenrt.perf.cost.chip import Chip
    from tokenrt.perf.cost.operators import work
    from tokenrt.targets import load
    from tokenrt.targets.layers import layers

    model = choice.model(np.float16)
    for_gpu(model)
    told, dims = fusion.computed(model.graph), shapes_of(model).dims
    levels = fusion.launched(model.graph, told, dims, 1)
    plugin = work(choice.operator, [(1, TOKENS, WIDTH), (1, TOKENS)], choice.settled, HALF)
    chips = {name: Chip.of(load(name)) for name in TARGETS}
    return OnGpus(
        len(layers(model, capability=CAPABILITY, batch=1)),
        len(levels),
        {name: round(1e6 * sum(level.seconds(chip) for level in levels), 1) for name, chip in chips.items()},
        len(plugin.launches),
        {name: round(1e6 * plugin.seconds(chip), 1) for name, chip in chips.items()},
    )


def timed(tower: Path, rounds: int, tower_rounds: int) -> tuple[dict[str, Ratio], dict[str, Ratio]]:
    """Each choice against NumPy, and all of them against the tower. Raises: TokenrtError where they choose differently."""
    random = np.random.default_rng(0)
    metric = random.standard_normal((1, TOKENS, WIDTH), np.float32)
    importance = random.random((1, TOKENS), np.float32)
    feeds = {"metric": metric, "importance": importance}
    contestants, against = dict[str, timing.Run](), dict[str, Ratio]()
    for name, choice in CHOICES.items():
        session = timing.session(choice.model(), threads=1)
        contestants[name] = timing.runner(session, feeds)
        if not np.array_equal(session.run(None, feeds)[0], choice.numpy(metric, importance)):
            raise TokenrtError(f"{choice.operator} ({name}) and NumPy choose different tokens")
        pair: dict[str, timing.Run] = {
            name: contestants[name],
            "NumPy": partial(choice.numpy, metric, importance),
        }
        against |= timing.compare(pair, base="NumPy", rounds=rounds)
    whole = timing.session(tower, threads=1)
    contestants[TOWER] = timing.runner(whole, timing.feeds(whole, 1))
    return against, timing.compare(contestants, base=TOWER, rounds=tower_rounds, warm_up=1)


if __name__ == "__main__":
    found = timed(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    print(json.dumps([{name: vars(ratio) for name, ratio in part.items()} for part in found]))
