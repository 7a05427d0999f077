"""The table of the front page: a few real models, each number from a results file that it links to.

`python -m tokenrt.perf.bench.front.table README.md` writes it between the two comments that mark its place.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenrt.files import atomic
from tokenrt.perf.bench import results
from tokenrt.perf.profile.timing import QUOTED

RESULTS = Path("docs/results")
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
HEAD = ("model", "method and budget", "tokens:", "work:", "time:", "agreement:")
NONE = "-"

SHOWN = ("tome-remove-8", "tome-remove-16", "evit-keep-65")
"""Variants of the demonstration: merging at two budgets, and pruning, which loses more on a dense output."""

BATCH = "1"
EVERY_THIRD = "evit --keep 0.7 --layers 3,6,9"


def table(root: Path) -> str:
    """The table as Markdown, from the results files below `root`, the folder of the page."""
    files = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (root / RESULTS).glob("*.json")
    }
    return results.table(HEAD, [*_demonstration(files), _tome(files), _evit(files)])


def _demonstration(files: Mapping[str, Any]) -> list[list[str]]:
    rows = {row["key"]: row for row in files["demo"]["rows"]}
    return [
        [
            "DINOv2 ViT-S/14, saliency",
            f"`{row['method']} {row['budget']}`",
            _counts(row["tokens"], "demo"),
            _linked(f"{row['macs_ratio']:.2f}", "demo"),
            _time(files, row),
            _linked(f"{row['correlation']['median']:.4f}", "demo"),
        ]
        for row in map(rows.__getitem__, SHOWN)
    ]


def _time(files: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The ratio of times: of the benchmark that measures it longest, else of the demonstration where it may be quoted."""
    longest = _profiled(files, files["demo"]["model"]["package"], f"{row['method']} {row['budget']}")
    if longest is not None:
        return _linked(f"{longest:.2f}", "profile_agreement")
    found = row["time_ratio"].get(BATCH)
    sure = found and found["interval_95"][1] - found["interval_95"][0] <= QUOTED * found["ratio"]
    return _linked(f"{found['ratio']:.2f}", "demo") if sure else NONE


def _profiled(files: Mapping[str, Any], model: str, reduction: str) -> float | None:
    """The mean of the ratios of times that `profile` found for a model, at batch 1."""
    for each in files["profile_agreement"]["models"]:
        if (each["model"], each["reduction"]) == (model, reduction):
            ratios: list[float] = each["ratios"]
            return sum(ratios) / len(ratios)
    return None


def _tome(files: Mapping[str, Any]) -> list[str]:
    cost = files["tome_cost"]
    times = {each["name"]: each["ratio"] for each in cost["ratios"][BATCH]}
    time = times["tome"] / times["unreduced"]
    return _classifier(
        files, f"tome --remove {cost['removed_per_block']}", _linked(f"{time:.2f}", "tome_cost")
    )


def _evit(files: Mapping[str, Any]) -> list[str]:
    time = _profiled(files, "DeiT-S, random weights", EVERY_THIRD)
    return _classifier(
        files, EVERY_THIRD, NONE if time is None else _linked(f"{time:.2f}", "profile_agreement")
    )


def _classifier(files: Mapping[str, Any], budget: str, time: str) -> list[str]:
    """DeiT-S: work as it was counted, time as it was measured; weights are random, so nothing to agree with."""
    rows = {row["budget"]: row for row in files["flops"]["rows"] if row["model"] == "DeiT-S/16"}
    row = rows[budget]
    work = row["macs"] / rows["unreduced"]["macs"]
    ends = [row["tokens"][0], row["tokens"][-1]]
    cells = [_counts(ends, "flops"), _linked(f"{work:.2f}", "flops"), time]
    return ["DeiT-S/16", f"`{budget}`", *cells, NONE]


def _counts(ends: Sequence[int], page: str) -> str:
    return _linked(f"{ends[0]} → {ends[-1]}", page)


def _linked(text: str, page: str) -> str:
    return f"[{text}]({RESULTS.as_posix()}/{page}.md)"


def renewed(page: Path) -> str:
    """The text of the page with its table made anew. Raises: ValueError where the two comments are missing."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for the table: {BEGIN} and {END} mark it")
    return f"{before}{begin}\n\n{table(page.parent)}\n\n{end}{after}"


def main() -> None:
    """Write the table into the page named."""
    page = Path(sys.argv[1])
    text = renewed(page)
    with atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
