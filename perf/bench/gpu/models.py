"""A step of `make gpu`: whole models with and without reductions, as functions and by plugin, timed side by side.

DeiT-S and ViT-L with random weights in float16: time depends on shapes alone. Everything of one runtime, model and batch runs in
the same rounds, in a new order each, so that drift hits all alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes.forms.convert import convert
from tokenrt.passes.forms.lower import lower
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench.gpu.card import Card
from tokenrt.perf.bench.gpu.deadline import Deadline
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.profile.timing import Run, compare
from tokenrt.targets import load, sessions

FORMS: Mapping[str, PlainViT] = {
    "DeiT-S 197": PlainViT(width=384, heads=6, blocks=12, patch=16, image=224),
    "ViT-L 577": PlainViT(width=1024, heads=16, blocks=24, patch=16, image=384),
}
TINY = {"tiny": PlainViT(width=32, heads=2, blocks=4, patch=8, image=48, classes=10)}

UNREDUCED = "unreduced"
REDUCTIONS: Mapping[str, tuple[str, Budget]] = {
    "tome at every block": ("tome", Budget.remove(8)),
    "tome once": ("tome", Budget.schedule("once", 0.6)),
    "topk": ("topk", Budget.schedule("stages", 0.7)),
    "evit": ("evit", Budget.schedule("stages", 0.7)),
    "slice": ("slice", Budget.remove(8)),
}
SMALLER = {"tome at every block": ("tome", Budget.remove(2)), "slice": ("slice", Budget.remove(2))}
"""What takes the place of the same for a model with few tokens."""

BATCHES = (1, 8, 32)
SECONDS = 3.0
"""Of timing for one runtime, model and batch."""


@dataclass(frozen=True)
class Runtime:
    """One way to run the models: its name, the form that they take for it, and how one is opened."""

    name: str
    form: Callable[[Path, Path], Path]
    open: Callable[[Path, int, ExitStack], Run]


def _as_it_is(model: Path, folder: Path) -> Path:
    return model


def _for_gpus(model: Path, folder: Path) -> Path:
    return _lowered(model, folder / f"gpu_{model.name}", target=load("rtx-portable"))


def _bare(model: Path, folder: Path) -> Path:
    return _lowered(model, folder / f"plugin_{model.name}", plugin=True)


def _lowered(model: Path, path: Path, **how: Any) -> Path:
    """The form; a model without reductions has none of its own."""
    if UNREDUCED in model.name:
        return model
    lower(model, output=path, **how)
    return path


def _session(provider: str, device: str) -> Callable[[Path, int, ExitStack], Run]:
    def opened(model: Path, batch: int, _: ExitStack) -> Run:
        """A session of ONNX Runtime whose inputs and outputs lie on the device."""
        import onnxruntime

        session = sessions.session(model, provider)
        binding = session.io_binding()
        for value in session.get_inputs():
            shape = [size if isinstance(size, int) else batch for size in value.shape]
            given = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            binding.bind_ortvalue_input(
                value.name, onnxruntime.OrtValue.ortvalue_from_numpy(given, device, 0)
            )
        for value in session.get_outputs():
            binding.bind_output(value.name, device)

        def run() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    return opened


def _engine(model: Path, batch: int, stack: ExitStack) -> Run:
    """An engine of TensorRT with the plugins, by polygraphy; its inputs lie on the GPU."""
    import onnx
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineFromNetwork,
        NetworkFromOnnxPath,
        Profile,
        TrtRunner,
    )
    from polygraphy.cuda import DeviceArray

    profile, feeds = Profile(), {}
    for value in onnx.load(model, load_external_data=False).graph.input:
        dims = [dim.dim_value or batch for dim in value.type.tensor_type.shape.dim]
        profile.add(value.name, dims, dims, dims)
        given = DeviceArray(dims, np.float32)
        given.copy_from(np.random.default_rng(0).standard_normal(dims).astype(np.float32))
        feeds[value.name] = given
    network = NetworkFromOnnxPath(str(model), strongly_typed=True)
    runner = stack.enter_context(TrtRunner(EngineFromNetwork(network, CreateConfig(profiles=[profile]))))
    return lambda: runner.infer(feeds, check_inputs=False, copy_outputs_to_host=False)


def runtimes(card: Card | None) -> Iterator[tuple[str, Runtime | str]]:
    """The runtimes by name, or why one cannot be had here. card: None stands for a dry run on the CPU."""
    if card is None:
        for form in (_as_it_is, _for_gpus):
            name = f"onnxruntime, cpu, {form.__name__.strip('_').replace('_', ' ')}"
            yield name, Runtime(name, form, _session("cpu", "cpu"))
        return
    functions = {"cuda": _as_it_is, "tensorrt-rtx": _for_gpus}
    for provider, form in functions.items():
        name = f"onnxruntime, {provider}, functions"
        why = sessions.missing(provider)
        yield name, why or Runtime(name, form, _session(provider, "cuda"))
    name = "tensorrt, plugins"
    try:
        from tokenrt.plugins.library import build, load

        load(build(arch=(card.capability,)).path)
        yield name, Runtime(name, _bare, _engine)
    except (TokenrtError, ImportError) as error:
        yield name, str(error)


def run(card: Card | None, deadline: Deadline) -> dict[str, Any]:
    """Time the models on every runtime that can be had; a dry run does so on the CPU at a tiny size."""
    rows, failed = list[dict[str, Any]](), list[str]()
    left_out, complete = dict[str, str](), True
    ways = dict(runtimes(card))
    left_out |= {name: way for name, way in ways.items() if isinstance(way, str)}
    for title, form in (FORMS if card else TINY).items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            models = _models(form, folder, tiny=card is None)
            for way in ways.values():
                if isinstance(way, str):
                    continue
                for batch in BATCHES if card else BATCHES[:1]:
                    if deadline.over():
                        complete = False
                        continue
                    try:
                        rows += _timed(way, models, batch, folder, title, deadline)
                    except Exception as error:
                        # Runtimes raise types of their own; one that fails must not end the others.
                        failed.append(
                            f"{way.name}, {title}, batch {batch}: {' '.join(str(error).split())[:300]}"
                        )
    return {
        "failed": len(failed),
        "complete": complete,
        "errors": failed,
        "left_out": left_out,
        "times": rows,
    }


def _models(form: PlainViT, folder: Path, *, tiny: bool) -> dict[str, Path]:
    """The model in float16, unreduced and with every reduction, as files."""
    whole, made = form.write(folder / "whole.onnx"), {}
    for name, (method, budget) in {UNREDUCED: ("", None), **REDUCTIONS}.items():
        model: Any = whole
        if budget is not None:
            method, budget = SMALLER.get(name, (method, budget)) if tiny else (method, budget)
            model = reduce(whole, method=method, budget=budget).model
        made[name] = folder / f"{name.replace(' ', '_')}.onnx"
        convert(model, precision="fp16", keep_io=True, rules="standard", check=False, output=made[name])
    return made


def _timed(
    way: Runtime, models: Mapping[str, Path], batch: int, folder: Path, title: str, deadline: Deadline
) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        runs = {name: way.open(way.form(path, folder), batch, stack) for name, path in models.items()}
        seconds = min(SECONDS, max(deadline.left(), 0.1))
        ratios = compare(runs, base=UNREDUCED, rounds=400, seconds=seconds, warm_up=3)
    for ratio in ratios.values():
        yield {"runtime": way.name, "model": title, "batch": batch, **ratio.as_dict()}
