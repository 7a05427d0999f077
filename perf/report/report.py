"""`tokenrt report`: the page of a run that was made, or of a document that lies in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenrt.errors import TokenrtError
from tokenrt.perf.report.document import VERSION
from tokenrt.perf.report.gather import SAMPLES, of_run
from tokenrt.perf.report.run import RUN, Run
from tokenrt.perf.report.write import check_page, write

DOCUMENT = "report.json"
"""A document that lies beside its page, as the demonstration leaves it."""


@dataclass(frozen=True)
class Written:
    """A page that was written, and the document it shows."""

    path: Path
    document: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return dict(self.document)

    def __rich__(self) -> Any:
        from rich.text import Text

        lines = [f"missing: {part}: {why}" for part, why in self.document["missing"].items()]
        size = f"{self.path.stat().st_size / 1e6:.1f} MB, opens in any browser, asks no network"
        return Text("\n".join([str(self.document["verdict"]), *lines, f"written: {self.path} ({size})"]))


def report(
    run: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    samples: int = SAMPLES,
    every: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Written:
    """Write one HTML file that shows a run of `tune`, or the demonstration: plans, tokens, pictures, times, checks, commands.

    Model and data of a run are read again, and its recommended plan, or the nearest, is timed and checked here; nothing
    else is said than what was measured. data, model: where they are now, if they moved. samples: photographs or texts that are
    shown, under `every` plan, or under those of the front alone, which is faster.
    Raises: TokenrtError; nothing is written then.
    """
    if samples < 1:
        raise TokenrtError(f"--samples {samples}: a report shows at least one")
    target, folder = Path(output), Path(run)
    check_page(target)
    if (folder / DOCUMENT).exists() and not (folder / RUN).exists():
        return page(_read(folder / DOCUMENT), target)
    tell = progress or (lambda stage: None)
    found = of_run(Run.of(folder), data=data, model=model, most=samples, every=every, tell=tell)
    return page(found.as_dict(), target)


def page(document: Mapping[str, Any], path: Path) -> Written:
    """Write the page of a document. Raises: TokenrtError."""
    write(document, path)
    return Written(path, document)


def _read(path: Path) -> Mapping[str, Any]:
    """A document from its file. Raises: TokenrtError for one of another version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["version"]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise TokenrtError(f"{path} holds no report: {type(cause).__name__}: {cause}") from cause
    if version != VERSION:
        raise TokenrtError(
            f"{path} is a report of form {version}, and this tokenrt reads form {VERSION}: make it again"
        )
    made: Mapping[str, Any] = found
    return made
