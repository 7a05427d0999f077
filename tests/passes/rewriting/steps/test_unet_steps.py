"""Regions that rest in a U-Net: of its first transformer, where all rows go on into convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.passes.helpers.running import run, session
from tests.passes.helpers.streams import seeded
from tests.passes.test_unet import UNet, exported, feeds
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce


def test_a_step_goes_on_with_its_own_state(tmp_path: Path) -> None:
    """With the state of the same latent half of the patches are the whole step; of another, what rests stays as it was."""
    torch.manual_seed(0)
    path, given = exported(seeded(UNet()), tmp_path, dynamic=False), feeds()
    made = reduce(path, method="ras", budget=Budget.keep(0.5, [0]), output=tmp_path / "r.onnx")
    assert [(site.transformer, site.where) for site in made.plan.sites] == [(0, "before-block")]
    whole, resting = session(tmp_path / "r.dense.onnx"), session(tmp_path / "r.onnx")
    first = dict(zip([value.name for value in whole.get_outputs()], run(whole, given), strict=True))
    state = {f"past_{name[8:]}": value for name, value in first.items() if name.startswith("present_")}
    state["update"] = given["latent"]
    names = [value.name for value in resting.get_outputs()]
    again = dict(zip(names, run(resting, given | state), strict=True))
    np.testing.assert_array_equal(again.pop("present_rested").sum(axis=1), made.plan.sites[0].tokens)
    for name, found in again.items():
        np.testing.assert_allclose(found, first[name], atol=1e-6)
    other = given | state | {"latent": given["latent"] + 0.1}
    moved = dict(zip(names, run(resting, other), strict=True))
    change = np.abs(moved["present_output"] - first["present_output"]).max(axis=2)
    np.testing.assert_array_equal(change == 0, moved["present_rested"] == 1)
