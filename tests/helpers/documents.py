"""The documents of the project, and what they tell a reader to type."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

HERE, DEVICE = "bash", "console"
"""Languages of blocks that run anywhere, and of those that need the device."""

FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block in one of the languages, in order."""
    return [(language, body) for language, body in FENCE.findall(page.read_text()) if language in languages]


def commands(page: Path, *languages: str) -> list[str]:
    """The commands of a page, one a line."""
    found: list[str] = []
    for _, body in blocks(page, *(languages or (HERE,))):
        found += [line.strip() for line in body.replace("\\\n", " ").splitlines()]
    return [line for line in found if line and not line.startswith("#")]
