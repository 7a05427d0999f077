"""The front page shows what the results files hold, and the demonstration's picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.documents import README, ROOT
from tokenrt.passes.planning.plan import Plan
from tokenrt.perf.bench import results
from tokenrt.perf.bench.front import demonstration, table
from tokenrt.perf.demo import demo
from tokenrt.perf.demo.report import FRONT, DemoReport, Row
from tokenrt.perf.profile.timing import Ratio


def test_the_readme_is_current() -> None:
    assert README.read_text(encoding="utf-8") == table.renewed(README), "make docs writes it anew"


def test_every_number_leads_to_the_page_of_its_file() -> None:
    rows = table.table(ROOT).splitlines()[2:]
    assert 4 <= len(rows) <= 5
    for row in rows:
        numbers = [cell.strip() for cell in row.strip("|").split("|")[2:]]
        assert all(cell.startswith("[") or cell == table.NONE for cell in numbers)
        assert "docs/results/" in row


def test_a_new_number_changes_the_page(tmp_path: Path) -> None:
    folder = tmp_path / table.RESULTS
    folder.mkdir(parents=True)
    for path in (ROOT / table.RESULTS).glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    told = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    told["rows"][0]["macs_ratio"] = 0.123
    (folder / "demo.json").write_text(json.dumps(told), encoding="utf-8")
    page = tmp_path / "README.md"
    page.write_bytes(README.read_bytes())
    assert "[0.12](docs/results/demo.md)" in table.renewed(page)


def test_a_page_without_a_place_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no place for the table"):
        table.renewed(page)


def test_the_picture_is_small_and_shown() -> None:
    path = ROOT / demonstration.PICTURE
    assert path.stat().st_size < 400_000
    assert f"]({demonstration.PICTURE.as_posix()})" in README.read_text(encoding="utf-8")
    with Image.open(path) as opened:
        assert opened.format == "JPEG"
        assert opened.width > 800


def test_the_demonstration_as_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan("tome", 257, 1, 12, sites=(), proportional_attention=True, macs_before=100, macs_after=84)
    speed = {batch: Ratio("tome", "original", 0.8, 0.7, 0.9, 40, 80.0, 100.0) for batch in (1, 4)}
    row = Row("tome-remove-8", "tome", "--remove 8", plan, {"cat": 0.9}, {"cat": 0.8}, (), speed)

    def pretend(folder: str, **asked: Any) -> DemoReport:
        assert asked["targets"] == ()
        (Path(folder) / FRONT).parent.mkdir()
        (Path(folder) / FRONT).write_bytes(b"a picture")
        return DemoReport(Path(folder), Path("model.onnx"), (), (row,), 1.0)

    monkeypatch.setattr(demo, "run", pretend)
    report = demonstration.run(tmp_path / "images" / "demo.jpg")
    assert (tmp_path / "images" / "demo.jpg").read_bytes() == b"a picture"
    told = json.dumps(report.as_dict())
    assert "/tmp" not in told
    line = "| `tome --remove 8` | 257 → 257 | 0.840 | 0.800 | 0.700 to 0.900 | 0.800 | 0.700 to 0.900 | 0.9000 | 0.9000 | ok |"
    assert line in report.page(results.circumstances())
