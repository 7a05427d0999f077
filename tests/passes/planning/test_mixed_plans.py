"""Plans whose sites name methods of their own: what is written, what is refused, and that each site is that method's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests import zoo
from tests.helpers.tolerance import within_twice
from tests.passes.helpers import tiny
from tests.passes.helpers.projectors import pictures, tower
from tests.passes.helpers.published import ToMe, forward
from tests.passes.helpers.refusals import refused_call
from tests.passes.helpers.running import Variant, close, feeds, run
from tokenrt.errors import PlanError
from tokenrt.passes.planning.outputs import handover
from tokenrt.passes.planning.plan import Budget, Plan, PlannedSite
from tokenrt.passes.reduce import plan, reduce

MODEL = Variant("timm_vit_patch8")
REMOVED, RATIO = 6, 0.6


def mixed(path: Any, sites: Sequence[tuple[int, int, str, dict[str, Any]]], **changes: Any) -> Plan:
    """A plan for the model of `path` with these sites: block, tokens, method, options."""
    base = plan(path, method="tome", budget=Budget.remove(1, [0]))
    made = tuple(
        PlannedSite(block, "after-attention", left, 0, name, own) for block, left, name, own in sites
    )
    return replace(base, sites=made, **changes)


def three(path: Any) -> Plan:
    """tome at blocks 0 and 1, a selection by class attention at 2."""
    full = zoo.entry(MODEL.name).tokens
    left = [full - REMOVED, full - 2 * REMOVED]
    kept = 1 + math.ceil(RATIO * (left[-1] - 1))
    sites = [(0, left[0], "", {}), (1, left[1], "", {}), (2, kept, "evit", {"fuse": False})]
    return mixed(path, sites)


@dataclass(frozen=True)
class Mixed:
    """tome at blocks 0 and 1; at 2 the tokens with the most class attention, each counted by its size, and their sizes."""

    proportional: bool = True

    def __call__(
        self, tokens: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, sizes: torch.Tensor, block: int
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        if block < 2:
            return ToMe(REMOVED, 1)(tokens, queries, keys, sizes, block)
        if block > 2:
            return tokens, sizes, math.inf
        logits = (queries[:, :1] @ keys.transpose(1, 2)) / math.sqrt(queries.shape[-1]) + sizes.log()
        attention = logits.softmax(dim=-1)[:, 0].mean(dim=0)[1:]
        ranked = torch.argsort(attention, descending=True)
        keep = math.ceil(RATIO * (len(tokens) - 1))
        chosen = torch.cat([torch.zeros(1, dtype=torch.long), 1 + ranked[:keep].sort().values])
        return tokens[chosen], sizes[chosen], float(attention[ranked[keep - 1]] - attention[ranked[keep]])


def test_sizes_go_on_from_one_method_to_the_next() -> None:
    """Against torch: what tome merged is weighed by the attention of a selection and by every block behind it."""
    made = reduce(MODEL.path(), plan=three(MODEL.path()))
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    (found,) = run(made.model, {"pixel_values": images.numpy()})
    net = zoo.build(MODEL.name)[0].net
    with torch.no_grad():
        plain, _ = forward(net, images, Mixed())  # type: ignore[arg-type]
        exact, margin = forward(net, images.double(), Mixed())  # type: ignore[arg-type]
    assert margin > 1e-6, "these pictures leave a decision to rounding: take another seed"
    within_twice(found, exact.numpy(), plain.numpy())


def test_reducing_twice_gives_the_same() -> None:
    """First the sites of tome, then that of the other method in what this has made."""
    whole = three(MODEL.path())
    once = reduce(MODEL.path(), plan=whole)
    first = reduce(MODEL.path(), plan=replace(whole, sites=whole.sites[:2]))
    last = whole.sites[2]
    twice = reduce(
        first.model,
        method=last.method,
        options=last.options,
        budget=Budget.tokens([last.tokens], [0]),
        transformers=[2],
    )
    given = feeds(MODEL.name)
    close(run(twice.model, given), run(once.model, given))


def test_a_file_says_it_all(tmp_path: Path) -> None:
    """One TOML and one command: it comes back as it was, prints each method, and the model and its handover tell them."""
    whole = three(MODEL.path())
    whole.save(tmp_path / "plan.toml")
    text = (tmp_path / "plan.toml").read_text()
    assert 'method = "evit"' in text.split("[[site]]")[3]
    assert "method" not in text.split("[[site]]")[2]
    assert Plan.load(tmp_path / "plan.toml").sites == whole.sites
    made = reduce(MODEL.path(), plan=tmp_path / "plan.toml", output=tmp_path / "out.onnx", source_map=True)
    assert Plan.parse(made.plan.to_toml(), "again").sites == made.plan.sites
    full, last = zoo.entry(MODEL.name).tokens, whole.sites[2].tokens
    assert made.plan.spec().startswith(
        f"reduce{{method=tome,sites=0:{full - 6};1:{full - 12};2:{last} by evit,"
    )
    assert made.plan.as_dict()["sites"][2]["options"]["fuse"] is False
    stored = onnx.load(tmp_path / "out.onnx")
    properties = {entry.key: entry.value for entry in stored.metadata_props}
    assert Plan.parse(properties["tokenrt.plan"], "stored").sites == made.plan.sites
    out, told = run(tmp_path / "out.onnx", feeds(MODEL.name))
    assert np.isfinite(out).all()
    assert (told == -1).any()
    assert np.unique(told[0]).size == last + 1


def test_what_was_merged_and_dropped_is_told_by_a_map() -> None:
    """An output that stays short behind both kinds: where each token went, -1 where it was dropped."""
    base = plan(tower("mlp"), method="topk", budget=Budget.tokens([30, 20], [0, 1]), short="all")
    whole = replace(base, sites=(replace(base.sites[0], method="tome"), base.sites[1]))
    made = reduce(tower("mlp"), plan=whole)
    found, told = run(made.model, pictures("mlp"))
    assert [value.name for value in made.model.graph.outputs] == ["image_features", "token_source_map"]
    assert (told == -1).any()
    assert told.max() == found.shape[1] - 1
    sites = handover.manifest(made.plan, made.model)["plan"]["sites"]
    assert [site.get("method") for site in sites] == ["tome", None]


def test_a_method_does_not_go_on_behind_another() -> None:
    """What avit noted of the tokens at block 0 says nothing of those that topk left of them."""
    full = zoo.entry(MODEL.name).tokens
    whole = mixed(
        MODEL.path(), [(0, full - 8, "avit", {}), (1, full - 16, "topk", {}), (2, full - 24, "avit", {})]
    )
    with pytest.raises(PlanError, match=r"block 2: avit goes on with what it noted .* that topk has changed"):
        reduce(MODEL.path(), plan=whole)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([(0, 5, "", {}), (1, 4, "tomme", {})], "no method is called 'tomme'; did you mean tome"),
        ([(0, 5, "", {}), (1, 4, "topk", {"mode": 1})], "'topk' has no option 'mode'"),
        ([(0, 5, "", {}), (1, 2, "tome", {})], "block 1: tome can leave at least 3 of 5"),
        ([(0, 5, "", {}), (1, 2, "evit", {})], "evit can leave at least 3 of 5"),
        ([(0, 5, "", {}), (1, 4, "evovit", {})], "evovit removes come back .* those of tome stay away"),
        ([(0, 5, "topk", {}), (1, 4, "tempme", {})], "tempme compares the frames of a clip"),
    ],
)
def test_sites_that_do_not_go_together(
    sites: list[tuple[int, int, str, dict[str, Any]]], message: str, tmp_path: Path
) -> None:
    onnx.save(tiny.model(), tmp_path / "model.onnx")
    made = mixed(tmp_path / "model.onnx", sites)
    refused_call(
        tmp_path, message, lambda: reduce(tmp_path / "model.onnx", plan=made, output=tmp_path / "o.onnx")
    )
