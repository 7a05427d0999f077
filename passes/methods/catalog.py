"""What there is to know about each method without running it: the tables, the cards and the pages in docs/methods.

Run as a script it writes the pages: `python -m tokenrt.passes.methods.catalog docs/methods`, or `make docs`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenrt.passes import methods
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.methods.terms import (
    ALWAYS,
    CACHED,
    EVIDENCE,
    HOMES,
    MATRIX,
    NEVER,
    RETURNS,
    TENSORS,
    WITHOUT_CLASS,
)

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class MethodInfo:
    """One method: what it is, what it needs, and how far it has been compared.

    needs: trained tensors and their shapes. own_queries: a model that has them itself needs none. quota: how a count that
    depends on the data was fixed; empty where the published count is fixed already. matrix: a key of MATRIX. fused: whether a
    fused attention stays without such a matrix, given a class token.
    """

    name: str
    family: str
    summary: str
    paper: str
    reads: tuple[str, ...]
    needs: Mapping[str, str]
    own_queries: bool
    quota: str
    fused: bool
    matrix: str
    evidence: str
    merges: bool
    drops: bool
    returns: str
    home: str
    pending: str
    layers: tuple[str, ...]
    takes: tuple[str, ...]
    ascending: bool
    engines: Mapping[str, str]
    systems: tuple[str, ...]
    deviations: str
    options: Mapping[str, Any]
    text: str

    @classmethod
    def of(cls, method: type[Method]) -> MethodInfo:
        matrix = _matrix(method.reads)
        return cls(
            name=method.name,
            family=method.family,
            summary=method.summary,
            paper=method.paper,
            reads=method.reads,
            needs=dict(method.needs),
            own_queries=method.own_queries,
            quota=method.quota,
            fused=matrix != ALWAYS,
            matrix=matrix,
            evidence=method.evidence,
            merges=method.merges,
            drops=method.drops,
            returns=method.returns,
            home=method.home,
            pending=method.pending,
            layers=method.layers,
            takes=method.takes,
            ascending=method.ascending,
            engines=dict(method.engines),
            systems=method.systems,
            deviations=method.deviations,
            options={field.name: field.default for field in fields(method)},
            text=inspect.getdoc(method) or "",
        )

    @property
    def trained(self) -> bool:
        """Whether it needs trained tensors whatever the model has."""
        return bool(self.needs) and not self.own_queries

    def as_dict(self) -> dict[str, Any]:
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def rows(self) -> list[tuple[str, str]]:
        """What the card and the page say, a property to a row."""
        options = [f"--set {key}={value}" for key, value in self.options.items() if key != "weights"]
        needs = [f"{name} [{shape}]" for name, shape in self.needs.items()]
        own = "none for a model that reads with learned queries itself; else " if self.own_queries else ""
        said = [
            ("family", methods.families()[self.family].lower()),
            ("sits", HOMES[self.home]),
            ("runs", self.pending and f"on arrays alone (tokenrt.apply_method): {self.pending}"),
            ("systems", "; ".join(self.systems)),
            ("shipped by", "; ".join(f"{engine} ({words})" for engine, words in self.engines.items())),
            ("inputs gained", ", ".join(self._inputs())),
            ("other layers", ", ".join(self.layers)),
            ("reads", ", ".join(self.reads) or "nothing: the same tokens for every input"),
            ("arrays", "; ".join(self._arrays())),
            ("trained weights", own + "--set weights=FILE with " + ", ".join(needs) if needs else "none"),
            ("token count", f"quota form: {self.quota}" if self.quota else "fixed, as published"),
            ("fused attention", "" if self.pending else MATRIX[self.matrix][1]),
            ("sizes", "threaded into attention and pooling" if self.merges else "not used by attention"),
            (
                "tokens that leave",
                RETURNS[self.returns] or ("dropped" if self.drops else "live on in others"),
            ),
            ("deviations", self.deviations),
            ("options", ", ".join(options) or "none"),
            ("compared with", EVIDENCE[self.evidence]),
            ("paper", self.paper),
        ]
        return [(key, value) for key, value in said if value]

    def _arrays(self) -> Iterable[str]:
        """What `apply_method` takes."""
        if self.home == "cache":
            return dict.fromkeys(CACHED[tap] for tap in ("keys", *self.reads))
        return dict.fromkeys(TENSORS[tap] for tap in ("tokens", *self.reads))

    def _inputs(self) -> list[str]:
        """The inputs that a model gains, with their shapes; those that some options alone ask for say so."""
        named = {name: TENSORS[name.removesuffix("?")] for name in self.takes}
        return [
            f"{shape} where an option asks" if name.endswith("?") else shape for name, shape in named.items()
        ]

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        for key, value in self.rows():
            table.add_row(key, Text(value))
        return Group(Text(f"{self.name}: {self.summary}"), "", Text(_paragraphs(self.text)), "", table)

    def page(self) -> str:
        """The method as a page of Markdown."""
        rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in self.rows())
        return f"# {self.name}\n\n{_paragraphs(self.text)}\n\n| | |\n|---|---|\n{rows}\n"


@dataclass(frozen=True)
class MethodCatalog:
    """All methods."""

    methods: tuple[MethodInfo, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"methods": [info.as_dict() for info in self.methods]}

    def families(self) -> Iterable[tuple[str, Sequence[MethodInfo]]]:
        """Titles of the families, each with its methods."""
        for family, title in methods.families().items():
            members = [info for info in self.methods if info.family == family]
            if members:
                yield title, members

    def engines(self) -> Mapping[str, Mapping[str, str]]:
        """Serving engines that ship methods, each with the words for them by method."""
        shipped: dict[str, dict[str, str]] = {}
        for info in self.methods:
            for engine, words in info.engines.items():
                shipped.setdefault(engine, {})[info.name] = words
        return dict(sorted(shipped.items()))

    def __rich__(self) -> RenderableType:
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table

        told = "tokenrt methods NAME describes one"
        table = Table(title="Reduction methods", caption=told, box=SIMPLE_HEAD, show_edge=False, padding=0)
        for column in HEADS:
            table.add_column(column, no_wrap=column == HEADS[0])
        for title, members in self.families():
            table.add_section()
            table.add_row(f"[bold]{title}[/bold]")
            for info in members:
                *properties, evidence, paper = _line(info)
                table.add_row(*properties, evidence.split()[0], _venue(paper))
        shipped = Table(title="Shipped by serving engines", box=SIMPLE_HEAD, show_edge=False, padding=0)
        for column in SHIPPED:
            shipped.add_column(column, no_wrap=column != SHIPPED[-1])
        for engine, own in self.engines().items():
            for method, words in own.items():
                shipped.add_row(engine, method, words)
        return Group(table, "", shipped)

    def page(self) -> str:
        """The index of the pages in Markdown."""
        parts = ["# Methods", "Written by `make docs` from the methods themselves."]
        for title, members in self.families():
            head = f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}"
            lines = []
            for info in members:
                name, *rest = _line(info)
                lines.append(f"| [{name}]({name}.md) | {' | '.join(map(_cell, rest))} |")
            parts += [f"## {title}", "\n".join([head, *lines])]
        rows = [
            f"| {engine} | [{method}]({method}.md) | {_cell(words)} |"
            for engine, own in self.engines().items()
            for method, words in own.items()
        ]
        head = f"| {' | '.join(SHIPPED)} |\n|{'---|' * len(SHIPPED)}"
        parts += ["## Shipped by serving engines", "\n".join([head, *rows])]
        return "\n\n".join(parts) + "\n"


SHIPPED = ("engine", "method", "its words")
HEADS = ("name", "reads", "weights", "count", "fused attention", "evidence", "paper")


def catalog() -> MethodCatalog:
    """Return every method, sorted by name."""
    return MethodCatalog(tuple(info(name) for name in methods.names()))


def info(name: str) -> MethodInfo:
    """Return what there is to know about one method. Raises: MethodError for an unknown name."""
    return MethodInfo.of(methods.get(name))


def write(folder: Path) -> None:
    """Write the index and one page a method; pages of methods that are gone are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    every = catalog()
    pages = {"README.md": every.page()} | {f"{info.name}.md": info.page() for info in every.methods}
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def _line(info: MethodInfo) -> tuple[str, ...]:
    return (
        info.name,
        ", ".join(info.reads).replace("_", " ") or "nothing",
        ("unless the model has queries" if info.own_queries else "needed") if info.needs else "none",
        "quota" if info.quota else "native",
        "arrays alone" if info.pending else MATRIX[info.matrix][0],
        info.evidence,
        info.paper,
    )


def _matrix(reads: Sequence[str]) -> str:
    """The key of MATRIX: a class token's attention is one row, whole matrices are what the other two taps take."""
    asked = [tap for tap in reads if tap in {"attention", "received_attention", "class_attention"}]
    if not asked or asked == ["class_attention"]:
        return NEVER
    return WITHOUT_CLASS if asked[0] == "class_attention" else ALWAYS


def _venue(paper: str) -> str:
    """Where each paper appeared: the last part of "authors, title, venue"."""
    return "; ".join(cited.split(",")[-1].strip() for cited in paper.split(";"))


def _paragraphs(text: str) -> str:
    """Docstring paragraphs as one line each, so that they wrap where they are shown."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/methods"))
