"""What models and plans cost as counted on their graphs, beside torch's own counter and the arena of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench import results
from tokenrt.perf.bench.models import exported
from tokenrt.perf.planner.costs import Cost, cost_of
from tokenrt.perf.planner.workbench import Workbench
from tokenrt.perf.profile import timing

MODELS = (
    "timm:vit_small_patch16_224", "timm:vit_base_patch16_224", "timm:vit_large_patch16_224",
    "timm:vit_small_patch14_dinov2", "timm:vit_base_patch16_clip_224", "timm:vit_base_patch16_siglip_224", "hf:bert",
)  # fmt: skip
"""What is counted, as `tokenrt export` names them; seeded weights."""

PLANS = {
    "unreduced": None,
    "`tome --remove 8`": ("tome", Budget.remove(8)),
    "`evit --keep 0.7 --layers 3,6,9`": ("evit", Budget.keep(0.7, [3, 6, 9])),
}
MEGA, GIGA = 1e6, 1e9
HEAD = (
    "model", "plan", "GMACs:", "torch counts:", "off:", "MB moved:", "peak, MB:", "arena holds:", "off:", "by default:",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A model under a plan. torch: multiply-accumulates, for unreduced models. arena, usual: bytes."""

    model: str
    plan: str
    cost: Cost
    torch: int | None
    arena: int
    usual: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "plan": self.plan.strip("`"),
            "cost": self.cost.as_dict(),
            "torch_macs": self.torch,
            "arena_bytes": self.arena,
            "arena_bytes_by_default": self.usual,
        }

    def cells(self) -> list[str]:
        cost, counted = self.cost, self.torch
        return [
            self.model.partition(":")[2],
            self.plan,
            f"{cost.macs / GIGA:.3f}",
            "-" if counted is None else f"{counted / GIGA:.3f}",
            "-" if counted is None else f"{cost.macs / counted - 1:+.2%}",
            f"{cost.moved / MEGA:.0f}",
            f"{cost.peak / MEGA:.2f}",
            f"{self.arena / MEGA:.2f}",
            f"{cost.peak / self.arena - 1:+.1%}",
            f"{self.usual / MEGA:.2f}",
        ]


@dataclass(frozen=True)
class CostReport:
    """All rows."""

    rows: Sequence[Row]

    def as_dict(self) -> dict[str, Any]:
        return {"rows": [row.as_dict() for row in self.rows]}

    def __rich__(self) -> Any:
        rows = ([cell.strip("`") for cell in row.cells()] for row in self.rows)
        return results.shown(HEAD, rows, "cost of one image")

    def page(self, where: Mapping[str, Any]) -> str:
        """The results as Markdown."""
        told = (
            "Multiply-accumulates, bytes moved and peak memory of one image (or text), counted on the graph with what "
            "reductions add. Beside the first stands what torch's own counter (`torch.utils.flop_counter`) finds when the model "
            "runs there, attention as plain products. Beside the last stands what the arena of ONNX Runtime holds at the most "
            "behind any kernel, by its own profile and beyond weights, when it is told all shapes and frees what is dead; in the "
            "last column the same of the file as it is, with the defaults. The runtime then keeps buffers for later tensors "
            "of the same shape (`enable_mem_reuse`), and where it cannot find out a shape behind a function it writes no tensor "
            "over another. What a kernel allocates and frees while it runs is in none. Made by "
            "`python -m tokenrt.perf.bench costs`."
        )
        rows = results.table(HEAD, [row.cells() for row in self.rows])
        return "\n\n".join(["# What models and plans cost", told, rows, results.told(where)])


def run(models: Sequence[str] = MODELS) -> CostReport:
    """Count every model under every plan, and measure it."""
    return CostReport([row for source in models for row in _rows(source)])


def _rows(source: str) -> list[Row]:
    rows = list[Row]()
    with Workbench.of(exported(source)) as bench:
        counted = _torch(source, bench.reducer.prepared.structure.tokens)
        for told, asked in PLANS.items():
            model = bench.reducer.prepared.model
            if asked is not None:
                model = bench.reducer.reduce(bench.reducer.plan(*asked)).model
            feed = timing.feeds(bench.session(model), 1)
            held = bench.peak(model, feed), bench.peak_by_default(model, feed)
            rows.append(Row(source, told, cost_of(model), None if asked else counted, *held))
    return rows


def _torch(source: str, tokens: int) -> int:
    """What torch counts for one picture, or so many words, on the meta device: shapes without numbers."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    kind, _, name = source.partition(":")
    with torch.device("meta"):
        if kind == "timm":
            import timm

            module: Any = timm.create_model(name)
            given = torch.zeros(1, *module.default_cfg["input_size"])
        else:
            from transformers import BertConfig, BertModel

            module = BertModel(BertConfig())
            given = torch.zeros(1, tokens, dtype=torch.long)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module.eval().requires_grad_(False)(given)
    return int(counter.get_total_flops()) // 2
