"""Sources of models, one file each: adding a file that defines `SOURCE` adds a source."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path

from tokenrt.errors import ExportError
from tokenrt.export.sources.contract import Source


@cache
def table() -> tuple[Source, ...]:
    """All sources, in the order of their forms."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found: list[Source] = [module.SOURCE for module in modules if hasattr(module, "SOURCE")]
    return tuple(sorted(found, key=lambda source: source.form))


def find(text: str) -> tuple[Source, tuple[str, ...]]:
    """The source that takes `text`, and the parts of it the source asked for.

    Raises: ExportError listing the forms, with what was probably meant.
    """
    for source in table():
        if match := re.fullmatch(source.pattern, text):
            return source, match.groups()
    forms = ", ".join(source.form for source in table())
    raise ExportError(f"{text!r} names no model source; the forms are {forms}{_hint(text)}")


def _hint(text: str) -> str:
    prefix, _, name = text.partition(":")
    known = [source.form.partition(":")[0] for source in table() if not source.form.startswith("FILE")]
    if text.endswith(".onnx"):
        return f"; {text} is ONNX already: use it as it is"
    if text.endswith(".py"):
        return f"; name the function that returns the model: {text}:FUNCTION"
    if text and Path(text).is_dir():
        return f"; for a Hugging Face folder write hf:{text}"
    if name and (close := difflib.get_close_matches(prefix.lower(), known, n=1, cutoff=0.5)):
        return f"; did you mean {close[0]}:{name}?"
    return f"; did you mean timm:{text} or hf:{text}?" if not name and text else ""
