"""The house: which room may import which, no circles, no crowded folder, and a sentence on every door.

Read by `ast`, nothing is imported. A room is a folder at the top, or one in it where that is divided; what lies
deeper belongs to it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.documents import ROOT

FRONT, FOLDERS = "tokenrt", ("export", "passes", "perf", "plugins", "targets")
GROUND = frozenset({"tokenrt._callable", "tokenrt.errors", "tokenrt.files", "tokenrt.version"})
"""Modules of the front door's folder that lie below every room and import none."""

MAY_IMPORT: Mapping[str, str] = {
    "passes.ops": "",
    "passes.graph": "passes.ops",
    "passes.methods": "passes.ops",
    "passes.checking": "passes.graph passes.ops",
    "passes.analysis": "passes.graph passes.ops",
    "passes.forms": "passes.checking passes.graph passes.ops",
    "passes.planning": "passes.analysis passes.graph passes.methods",
    "passes.rewriting": "passes.analysis passes.graph passes.methods passes.ops passes.planning",
    "passes": "passes.analysis passes.graph passes.methods passes.planning passes.rewriting",
    "plugins.toolchain": "",
    "plugins.host": "passes.ops plugins.toolchain",
    "plugins": "passes.ops plugins.toolchain",
    "export.sources": "",
    "export": "export.sources passes.checking passes.graph",
    "targets.engines": "passes.forms passes.ops",
    "targets.profiles": "passes.forms plugins",
    "targets.rtx": "targets.engines",
    "targets.trtexec": "passes.graph targets.engines targets.profiles targets.rtx",
    "targets": "passes.checking passes.forms passes.graph targets.engines targets.profiles targets.rtx targets.trtexec",
    "perf.profile": "passes.analysis passes.checking passes.forms passes.graph targets targets.engines targets.profiles "
    "targets.trtexec",
    "perf.pictures": "passes passes.analysis passes.checking passes.graph passes.planning",
    "perf.demo": "passes passes.checking passes.graph passes.planning perf.pictures perf.planner perf.profile perf.report "
    "targets targets.profiles",
    "perf.cost": "passes passes.analysis passes.forms passes.graph passes.ops passes.planning perf.profile targets.profiles",
    "perf.planner": "passes passes.analysis passes.checking passes.graph passes.methods passes.planning perf.cost perf.profile "
    "targets.profiles",
    "perf.tune": "passes passes.analysis passes.methods passes.planning perf.cost perf.planner perf.profile targets "
    "targets.profiles",
    "perf.compare": "passes passes.analysis passes.checking passes.graph passes.planning perf.cost perf.planner perf.profile "
    "perf.report perf.tune targets targets.profiles",
    "perf.report": "passes.analysis passes.checking passes.graph passes.planning perf.planner perf.profile",
    "perf.bench": "export passes passes.analysis passes.checking passes.forms passes.graph passes.methods passes.ops "
    "passes.planning perf.cost perf.demo perf.planner perf.profile perf.tune plugins plugins.host plugins.toolchain targets",
    "tokenrt": "passes.forms passes.methods passes.planning perf.cost perf.demo perf.pictures perf.planner plugins plugins.host "
    "plugins.toolchain targets targets.trtexec",
}
"""Each room below those that import it: an arrow that is not here is a fault, and so is one here that nobody uses."""

MOST = 16
"""Python files in one folder; a file an operator and a file a method may be more."""

MANY = ("passes/methods", "passes/ops", "tests/passes/methods", "tests/passes/ops", "tests/golden/checks")
SOURCES = frozenset({".py", ".cu", ".cuh", ".cpp", ".h"})


@dataclass(frozen=True)
class House:
    """The modules below `root`, by the names they are imported by."""

    root: Path

    @cached_property
    def modules(self) -> Mapping[str, Path]:
        found = {}
        for folder in (FRONT, *FOLDERS):
            for path in sorted((self.root / folder).rglob("*.py")):
                parts = path.relative_to(self.root).with_suffix("").parts
                name = ".".join(parts if folder == FRONT else (FRONT, *parts))
                found[name.removesuffix(".__init__")] = path
        return found

    def room(self, module: str) -> str:
        if module in GROUND:
            return "ground"
        path = self.modules[module].relative_to(self.root).parent
        return FRONT if path.parts[0] == FRONT else ".".join(path.parts[:2])

    @cached_property
    def imports(self) -> Mapping[str, frozenset[str]]:
        """Module -> those it imports, inside functions too, for types alone not."""
        return {
            name: frozenset(self._named(ast.parse(path.read_text()))) - {name}
            for name, path in self.modules.items()
        }

    def _named(self, tree: ast.AST) -> Iterator[str]:
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                yield from self._named(ast.Module(node.orelse, []))
                continue
            if isinstance(node, ast.ImportFrom):
                yield from map(
                    self._module, (f"{node.module}.{each.name}" for each in node.names if not node.level)
                )
            elif isinstance(node, ast.Import):
                yield from map(self._module, (each.name for each in node.names))
            else:
                yield from self._named(node)

    def _module(self, name: str) -> str:
        """The module a name lies in, or nothing where it is none of ours."""
        while name and name not in self.modules:
            name = name.rpartition(".")[0]
        return name

    def arrows(self) -> dict[tuple[str, str], str]:
        """(room, room it imports) -> an import that is one."""
        found: dict[tuple[str, str], str] = {}
        for module, imported in self.imports.items():
            for other in imported - {""}:
                pair = self.room(module), self.room(other)
                if pair[0] != pair[1] and (pair[1] != "ground" or pair[0] == "ground"):
                    found[pair] = f"{module} imports {other}"
        return found

    def circle(self) -> list[str]:
        """Modules that import one another in a circle, or none."""
        try:
            TopologicalSorter({name: found - {""} for name, found in self.imports.items()}).prepare()
        except CycleError as error:
            return list(error.args[1])
        return []

    def crowded(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for folder in (FRONT, *FOLDERS, "tests"):
            for path in (self.root / folder).rglob("*.py"):
                place = path.parent.relative_to(self.root).as_posix()
                counts[place] = counts.get(place, 0) + 1
        return {
            place: count for place, count in counts.items() if count > MOST and not place.startswith(MANY)
        }

    def nameless(self) -> list[str]:
        """Folders with sources whose `__init__` or README begins with no sentence."""
        places = {
            path.parent
            for folder in (FRONT, *FOLDERS)
            for path in (self.root / folder).rglob("*")
            if path.suffix in SOURCES
        }
        return sorted(place.relative_to(self.root).as_posix() for place in places if not _sentence(place))

    def against(self, table: Mapping[str, str]) -> list[str]:
        """What is imported and not in the table, and what is in the table and imported by nobody."""
        arrows = self.arrows()
        allowed = {(room, other) for room, others in table.items() for other in others.split()}
        return [
            *(f"{' -> '.join(pair)}: {arrows[pair]}" for pair in sorted(arrows.keys() - allowed)),
            *(f"{' -> '.join(pair)}: nobody uses it" for pair in sorted(allowed - arrows.keys())),
        ]


def _sentence(folder: Path) -> bool:
    init, page = folder / "__init__.py", folder / "README.md"
    said = (ast.get_docstring(ast.parse(init.read_text())) or "") if init.is_file() else ""
    if not said and page.is_file():
        said = next((line for line in page.read_text().splitlines() if line and not line.startswith("#")), "")
    return bool(said)


HOUSE = House(ROOT)


def test_rooms_import_what_the_table_says() -> None:
    assert not HOUSE.against(MAY_IMPORT)


def test_the_table_goes_one_way() -> None:
    TopologicalSorter({room: others.split() for room, others in MAY_IMPORT.items()}).prepare()


def test_no_circle() -> None:
    assert not HOUSE.circle()


def test_no_folder_is_crowded() -> None:
    assert not HOUSE.crowded()


def test_every_room_says_what_lives_there() -> None:
    assert not HOUSE.nameless()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A house of two rooms and a front that is as it should be."""
    for place in (
        "tokenrt",
        "passes",
        "passes/ops",
        "passes/graph",
        "export",
        "perf",
        "plugins",
        "targets",
        "tests",
    ):
        (tmp_path / place).mkdir()
        (tmp_path / place / "__init__.py").write_text('"""A room."""\n')
    (tmp_path / "tokenrt" / "errors.py").write_text("")
    (tmp_path / "passes" / "ops" / "one.py").write_text("from tokenrt.errors import TokenrtError\n")
    (tmp_path / "passes" / "graph" / "two.py").write_text("from tokenrt.passes.ops import one\n")
    return tmp_path


TABLE = {"passes.ops": "", "passes.graph": "passes.ops"}


def test_a_small_house_stands(small: Path) -> None:
    house = House(small)
    assert not house.against(TABLE)
    assert not house.circle()
    assert not house.crowded()
    assert not house.nameless()


@pytest.mark.parametrize(
    "line",
    [
        "from tokenrt.passes.graph.two import something",
        "import tokenrt.passes.graph.two",
        "from tokenrt.passes.graph import two",
        "def later():\n    from tokenrt.passes.graph import two",
        "try:\n    from tokenrt.passes.graph import two\nexcept ImportError:\n    pass",
    ],
)
def test_an_arrow_up_is_seen(small: Path, line: str) -> None:
    (small / "passes" / "ops" / "one.py").write_text(line + "\n")
    house = House(small)
    found = house.against(TABLE)
    assert any(fault.startswith("passes.ops -> passes.graph: ") for fault in found)
    # One imports two and two imports one: the circle is seen as well.
    assert {"tokenrt.passes.ops.one", "tokenrt.passes.graph.two"} <= set(house.circle())


def test_the_ground_imports_no_room(small: Path) -> None:
    (small / "tokenrt" / "errors.py").write_text("from tokenrt.passes.graph import two\n")
    assert any(fault.startswith("ground -> passes.graph") for fault in House(small).against(TABLE))


def test_an_import_for_types_alone_is_none(small: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tokenrt.passes.graph import two\n"
    (small / "passes" / "ops" / "one.py").write_text(text)
    assert not House(small).against(TABLE)


def test_an_arrow_nobody_uses_is_seen(small: Path) -> None:
    (small / "passes" / "graph" / "two.py").write_text("")
    assert House(small).against(TABLE) == ["passes.graph -> passes.ops: nobody uses it"]


def test_a_crowd_is_seen(small: Path) -> None:
    for number in range(MOST):
        (small / "perf" / f"file{number}.py").write_text("")
        (small / "passes" / "ops" / f"file{number}.py").write_text("")
    assert House(small).crowded() == {"perf": MOST + 1}


@pytest.mark.parametrize("text", ["", "x = 1\n"])
def test_a_door_without_a_sentence_is_seen(small: Path, text: str) -> None:
    (small / "passes" / "graph" / "__init__.py").write_text(text)
    assert House(small).nameless() == ["passes/graph"]
    (small / "passes" / "graph" / "README.md").write_text("# Graph\n\nA model as a graph.\n")
    assert not House(small).nameless()
