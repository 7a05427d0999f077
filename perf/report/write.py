"""A document as one page: HTML, styles, script and data in a single file that asks no network for anything."""

from __future__ import annotations

import os
from pathlib import Path

from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.files import atomic
from tokenrt.perf.report.document import SECTIONS, Document

PAGE = Path(__file__).parent / "page"
MOST = 5_000_000
"""Bytes of a page at the most."""


def html(document: Document) -> str:
    """The page as text. Raises: DependencyError without jinja2; TokenrtError for a page of more than `MOST` bytes."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as cause:
        raise DependencyError("jinja2", "report", "writing a report") from cause
    pages = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    made = pages.get_template("report.html").render(
        document=document,
        data=document.as_dict(),
        sections=SECTIONS,
        style=(PAGE / "report.css").read_text(encoding="utf-8"),
        script=(PAGE / "report.js").read_text(encoding="utf-8"),
    )
    if (size := len(made.encode())) > MOST:
        raise TokenrtError(
            f"the report takes {size / 1e6:.1f} MB, more than {MOST / 1e6:.0f}: show fewer or smaller samples (--samples)"
        )
    return made


def write(document: Document, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`, or nothing. Raises: as `html`; TokenrtError where the file cannot be written."""
    text = html(document)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)
