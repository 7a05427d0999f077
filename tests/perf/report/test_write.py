"""Pages of documents: nothing that a name holds becomes markup, and what was not measured is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tokenrt.errors import TokenrtError
from tokenrt.perf.report import write
from tokenrt.perf.report.document import Document, Entry, Measures, Model

NASTY = "</script><script>alert(1)</script><b>&\u2028"


def document(name: str = "tome, constant", **more: object) -> Document:
    entries = (Entry(name, cost=0.7, harm=float("inf")), Entry("topk", cost=0.8, harm=0.1, recommended=True))
    given = {"missing": {"samples": "the data holds no pictures"}, "entries": entries, **more}
    return Document(
        "compare",
        f"Report of {name}",
        "Take it.",
        Model(name),
        Measures("work", "angle"),
        **given,  # type: ignore[arg-type]
    )


def inside(page: str) -> dict[str, object]:
    (found,) = re.findall(r'<script type="application/json" id="document">(.*?)</script>', page, re.DOTALL)
    made: dict[str, object] = json.loads(found)
    return made


def test_names_stay_text(tmp_path: Path) -> None:
    page = write.write(document(NASTY), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page
    assert page.count("<script") == 2
    assert inside(page)["model"] == document(NASTY).as_dict()["model"]


def test_what_is_not_finite_is_none_in_the_document_and_the_recommended_one_is_shown() -> None:
    told = document().as_dict()
    json.dumps(told, allow_nan=False)
    assert told["entries"][0]["harm"] is None
    assert told["shown"] == 1
    assert document(NASTY).shown == 1


def test_a_part_that_is_missing_says_why() -> None:
    assert "the data holds no pictures" in write.html(document())


def test_a_harm_that_is_not_finite_is_no_harm_that_was_not_measured() -> None:
    measured = Entry("a", cost=0.5, harm=float("inf"), harms=(float("inf"),))
    page = write.html(document(entries=(measured, Entry("b", cost=0.5))))
    assert [page.count(f'<td class="n">{words}</td>') for words in ("not finite", "not measured")] == [1, 1]


def test_a_page_that_grows_too_large_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MOST", 1000)
    with pytest.raises(TokenrtError, match="more than"):
        write.write(document(), tmp_path / "r.html")
    assert not [*tmp_path.iterdir()]
