"""What a site costs in engine layers has a ceiling: an operator's body that grows is seen without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench.gpu import engine_layers
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.targets.rtx.builder import TENSORRT_RTX

pytest.importorskip(TENSORRT_RTX.module, reason="needs tensorrt-rtx")

CEILING = {"tome": 6.0, "topk": 3.0, "evit": 7.0}
"""Layers a site on a plain ViT with the widths of DeiT-S, float16, one image, SM89; TensorRT-RTX 1.7.1."""


def test_no_site_costs_more_than_its_ceiling(tmp_path: Path) -> None:
    model = PlainViT(width=384, heads=6, blocks=3, patch=16).write(tmp_path / "m.onnx")
    budgets = {"tome": Budget.remove(8), "topk": Budget.keep(0.7, [1]), "evit": Budget.keep(0.7, [1])}
    found = engine_layers.run(budgets, batches=(1,), model=model)
    each = {(row.method, row.form): row.each for row in found.rows}
    for method, ceiling in CEILING.items():
        assert each[method, "for GPUs"] <= ceiling
        assert each[method, "for GPUs"] < each[method, "portable"]
    page = found.page({"date": "", "processor": "", "processors": 2, "versions": {}})
    assert "| `tome` |" in page
