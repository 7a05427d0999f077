"""Whether a builder takes a model, asked once for the same bytes and the same builder."""

from __future__ import annotations

from pathlib import Path

from tokenrt.errors import TokenrtError
from tokenrt.perf.bench.journal import Journal, digest
from tokenrt.perf.demo.subject import version

YES = "yes"


def engine(
    model: Path, target: str, journal: Journal, *, half: bool = False, batch: int | None = None
) -> str:
    """Yes, or what the builder said. half: of its float16 form, which is written beside it."""
    from tokenrt.passes.forms.convert import convert
    from tokenrt.targets.build import build

    source = model
    if half:
        source = model.with_name(f"{model.stem}-half.onnx")
        convert(model, precision="fp16", keep_io=True, output=source, check=False)
    parts = (target, str(version("tensorrt_rtx_cu13_libs")), *([] if batch is None else [str(batch)]))
    key = digest(source, *parts)
    answer = journal.get(key)
    if answer is None:
        try:
            build(source, target=target, output=source.with_suffix(".engine"), batch=batch)
        except TokenrtError as refusal:
            return str(refusal).splitlines()[0]
        answer = journal.put(key, YES)
    return str(answer)
