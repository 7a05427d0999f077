"""A model on which plans are tried: prepared once, so that a try costs its runs and less than a second."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.errors import TokenrtError
from tokenrt.passes.analysis.prepare import Protect, ShapeOption
from tokenrt.passes.checking.check_data import Array, Feed
from tokenrt.passes.checking.runtime import session_options
from tokenrt.passes.graph.model import ModelLike
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.reducer import Reducer
from tokenrt.passes.report import Reduced
from tokenrt.perf.planner import arena
from tokenrt.perf.planner.opened import Opened
from tokenrt.perf.planner.weights import Weights
from tokenrt.perf.profile import timing

FOLDER = "session.model_external_initializers_file_folder_path"
"""Where ONNX Runtime looks for weights outside a model that is given as bytes."""

Answer = dict[str, Array]
"""The outputs of one run, by name."""


@dataclass(frozen=True)
class Trial:
    """A plan as a proven model, and a session of ONNX Runtime that runs it."""

    reduced: Reduced
    session: Any

    def answers(self, feeds: Sequence[Feed]) -> list[Answer]:
        """The outputs of each run."""
        return answers(self.session, feeds)


@dataclass(frozen=True)
class Workbench:
    """A prepared model, its weights on disk, and sessions of whatever is made of it.

    Every try is checked and proven as `tokenrt.reduce` does it; what is spared is preparing the model again, copying and writing
    its weights, and ONNX Runtime's own way of opening functions.
    """

    reducer: Reducer
    weights: Weights
    threads: int

    @classmethod
    @contextmanager
    def of(
        cls,
        model: ModelLike,
        *,
        shape: ShapeOption = None,
        protect: Protect = None,
        threads: int | None = None,
    ) -> Iterator[Workbench]:
        """Prepare a model; weights lie in a temporary folder until the end. Raises: ModelError, ShapeError, PlanError."""
        reducer = Reducer.of(model, shape, protect)
        with tempfile.TemporaryDirectory(prefix="tokenrt-") as folder:
            weights = Weights.of(reducer.prepared.model, Path(folder))
            yield cls(reducer, weights, threads or timing.default_threads())

    def original(self) -> Any:
        """A session of the model without a reduction."""
        return self.session(self.reducer.prepared.model)

    def trial(self, plan: Plan) -> Trial:
        """The plan as a model that runs. Raises: TokenrtError, as `tokenrt.reduce` does."""
        reduced = self.reducer.reduce(plan)
        return Trial(reduced, self.session(reduced.model))

    def session(self, model: ir.Model) -> Any:
        """A session of a model that was made of the prepared one. Raises: TokenrtError where the runtime does not take it."""
        return self.opener(model)()

    def opener(self, model: ir.Model, threads: int | None = None, *, reuse: bool = True) -> Callable[[], Any]:
        """What opens a session, as `session` does, in any thread; the model is read now. threads: of one operator.

        reuse: let the runtime plan which later tensors take the buffers of dead ones, as it does by default. Numbers and, within
        noise, times are the same without, less is held, and models with loops open in a third of the time (ONNX Runtime 1.31).
        """
        options = self._options(model, threads)
        options.enable_mem_reuse = reuse
        return partial(_opened, self.weights.serialized(model), options)

    def profiled(self, model: ir.Model, prefix: Path) -> Any:
        """A session whose profiler writes a file that begins with `prefix`."""
        options = self._options(model)
        options.enable_profiling = True
        options.profile_file_prefix = str(prefix)
        return _opened(self.weights.serialized(model), options)

    def peak(self, model: ir.Model, feed: Feed) -> int:
        """Bytes of activations that ONNX Runtime's arena holds at the most in a run, told all shapes and freeing what is dead."""
        told = self.weights.serialized(Opened.of(model).told())
        return arena.peak(partial(_opened, told), self._options(model), feed)

    def peak_by_default(self, model: ir.Model, feed: Feed) -> int:
        """The same as a file of the model runs: shapes are what the runtime finds out, and buffers are kept for later tensors."""
        return arena.peak(
            partial(_opened, self.weights.serialized(model)), self._options(model), feed, reuse=True
        )

    def _options(self, model: ir.Model, threads: int | None = None) -> Any:
        options = timing.settled(session_options(model), threads or self.threads)
        options.add_session_config_entry(FOLDER, str(self.weights.folder))
        return options


def _opened(model: bytes, options: Any) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as cause:
        raise TokenrtError(
            f"ONNX Runtime does not take the model: {str(cause).splitlines()[0][:300]}"
        ) from cause


def answers(session: Any, feeds: Sequence[Feed]) -> list[Answer]:
    """The outputs of each run of a session, by name."""
    return [answer(session, feed) for feed in feeds]


def answer(session: Any, feed: Feed) -> Answer:
    """The outputs of a run, by name. An input that only the model as it came has is not fed."""
    names = [value.name for value in session.get_outputs()]
    own = {value.name for value in session.get_inputs()}
    run = session.run(names, {name: array for name, array in feed.items() if name in own})
    return dict(zip(names, run, strict=True))
