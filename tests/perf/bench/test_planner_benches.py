"""The benches of the planner: what they count and measure of a small model, and what their pages say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench import costs, results
from tokenrt.perf.bench.cpu import latency
from tokenrt.perf.bench.plain_vit import PlainViT

TINY = PlainViT(width=64, heads=2, blocks=3, patch=16, image=64, classes=5)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path / "cache"))
    return TINY.write(tmp_path / "tiny.onnx")


def test_costs_stand_beside_what_was_measured(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "exported", lambda source: tiny)
    monkeypatch.setattr(costs, "_torch", lambda source, tokens: 1000 * tokens)
    monkeypatch.setattr(costs, "PLANS", {"unreduced": None, "`topk`": ("topk", Budget.keep(0.5, [1]))})
    first, second = costs.run(["timm:tiny"]).rows
    assert (first.torch, second.torch) == (17000, None)
    assert second.cost.macs < first.cost.macs
    assert first.cost.peak == pytest.approx(first.arena, rel=0.02)
    assert first.usual >= first.arena
    page = costs.CostReport([first, second]).page(results.circumstances())
    assert f"| tiny | unreduced | {first.cost.macs / 1e9:.3f} | 0.000 |" in page


def test_predictions_stand_beside_what_was_measured(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "METHODS", ("topk",))
    monkeypatch.setattr(latency, "UNSEEN", {"`topk --remove 3`": ("topk", Budget.remove(3))})
    for name in ("SWEPT", "REPEATS", "ROUNDS"):
        monkeypatch.setattr(latency, name, 2)
    report = latency.run({"tiny": lambda: tiny})
    (row,) = report.rows
    assert row.tokens == 8
    assert row.off == pytest.approx(row.predicted / row.measured - 1)
    assert f"Farthest off: {abs(row.off):.1%}" in report.page(results.circumstances())
    # What was measured once is not measured again.
    monkeypatch.setattr(latency, "_measured", lambda *_: pytest.fail("measured again"))
    assert latency.run({"tiny": lambda: tiny}).rows == report.rows
