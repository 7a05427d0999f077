"""A document as one page: HTML, styles, script and data in a single file that asks no network for anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.files import atomic
from tokenrt.perf.report.document import SECTIONS, Document
from tokenrt.perf.report.words import FILTERS

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("common.js", "charts.js", "samples.js", "page.js")
MOST = 5_000_000
"""Bytes of a page at the most."""


def html(document: Document | Mapping[str, Any]) -> str:
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
    pages.filters |= FILTERS
    pages.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    made = pages.get_template("report.html").render(
        document=document.as_dict() if isinstance(document, Document) else document,
        sections=SECTIONS,
        style=(PAGE / "report.css").read_text(encoding="utf-8"),
        script="\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )
    if (size := len(made.encode())) > MOST:
        raise TokenrtError(
            f"the report takes {size / 1e6:.1f} MB, more than {MOST / 1e6:.0f}: show fewer or smaller samples (--samples)"
        )
    return made


def check_page(path: str | os.PathLike[str]) -> None:
    """Whether a page can be written there, before any work is done. Raises: TokenrtError."""
    target = Path(path)
    if target.suffix not in (".html", ".htm"):
        raise TokenrtError(f"cannot write {target}: a report's file name ends in .html")
    if target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise TokenrtError(f"cannot write {target}: name a file in a folder that is there and can be written")


def write(document: Document | Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`, or nothing. Raises: as `html` and `check_page`."""
    check_page(path)
    text = html(document)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)
