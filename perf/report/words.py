"""Numbers of a document as the page writes them; the script writes those that change with the plan in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


def by_cost(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries with their places in the document, the cheapest first, those of unknown cost last."""
    placed = [{**each, "place": place} for place, each in enumerate(entries)]
    return sorted(placed, key=lambda each: (each["cost"] is None, each["cost"] or 0.0, each["place"]))


def percent(share: float | None) -> str:
    return "not known" if share is None else f"{share:.1%}"


def share(part: float, whole: float) -> str:
    """A part of a whole as CSS and people read it."""
    return "100%" if part == whole or not whole else f"{part / whole:.1%}"


def short(number: float | None) -> str:
    """Three digits that count."""
    return "not finite" if number is None else f"{number:.3g}"


def harm(entry: Mapping[str, Any]) -> str:
    """That of an entry. JSON holds no infinity: one that was measured and is None was not finite."""
    return "not measured" if entry["harm"] is None and not entry["harms"] else short(entry["harm"])


def large(number: float, unit: str) -> str:
    """A number with its unit's prefix: 7.60 G, 8.4 MB. unit: "B" for bytes, else the prefix that is used."""
    fitting = [name for name, size in UNITS.items() if number >= size or not name]
    prefix = unit if unit in UNITS else fitting[-1]
    return f"{number / UNITS[prefix]:.3g} {prefix}{unit if unit not in UNITS else ''}".rstrip()


def sentence(text: str) -> str:
    """With a capital and an end."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


FILTERS = {each.__name__: each for each in (by_cost, percent, share, short, harm, large, sentence)}
