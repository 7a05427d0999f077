"""Whether a builder takes a model, asked once for the same bytes and the same builder."""

from __future__ import annotations

from pathlib import Path

from tokenrt.errors import TokenrtError
from tokenrt.perf.bench.journal import Journal, digest
from tokenrt.perf.demo.subject import version

YES = "yes"


def engine(model: Path, target: str, journal: Journal) -> str:
    """Yes, or what the builder said."""
    return _asked(model, target, journal, None)


def half_engine(model: Path, target: str, journal: Journal) -> str:
    """The same of the float16 form, which is written beside the model; for one picture where its batch is free."""
    from tokenrt.passes.forms.convert import convert

    half = model.with_name(f"{model.stem}-half.onnx")
    made = convert(model, precision="fp16", keep_io=True, output=half, check=False).model
    free = any(not isinstance(size, int) for value in made.graph.inputs for size in value.shape or ())
    return _asked(half, target, journal, 1 if free else None)


def _asked(model: Path, target: str, journal: Journal, batch: int | None) -> str:
    from tokenrt.targets.build import build

    parts = (target, str(version("tensorrt_rtx_cu13_libs")), *([] if batch is None else [str(batch)]))
    key = digest(model, *parts)
    answer = journal.get(key)
    if answer is None:
        try:
            build(model, target=target, output=model.with_suffix(".engine"), batch=batch)
        except TokenrtError as refusal:
            return str(refusal).splitlines()[0]
        answer = journal.put(key, YES)
    return str(answer)
