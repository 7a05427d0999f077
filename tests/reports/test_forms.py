"""Forms that people bring, exported by torch: each reduction is the torch model with tokens cut by hand, or is refused by name.

Forms of attention alone, quantized graphs and Ifs are proven elsewhere; `test_table.py` says where.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import tokenrt
from tests import zoo
from tests.passes.helpers.running import run
from tokenrt import Budget
from tokenrt.errors import NothingToDoError

pytestmark = pytest.mark.filterwarnings("ignore")  # The exporters' own.

CUT = {
    "form_shared_key": (13, 9),
    "form_channels_first": (13, 9),
    "form_flat_text": (29, 24),
    "form_tower": (13, 9),
    "form_tower_merged": (13, 9),
    "form_detector": (13, 9),
    "form_detector_batch_first": (13, 9),
    "form_conditioned": (13, 9),
    "form_trailing_tokens": (15, 11),
    "form_in_if": (13, 9),
}
"""Form -> tokens behind each of its two blocks."""


def exported(name: str, **options: Any) -> Any:
    return zoo.onnx(name, 17, exporter="torchscript", **options)


def arrays(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in inputs.items()}


@pytest.mark.parametrize("name", CUT)
def test_slice_is_the_model_cut_by_hand(name: str) -> None:
    path, keep = exported(name), CUT[name]
    net, inputs, _ = zoo.build(name)
    entry, found = zoo.entry(name), tokenrt.inspect(path)
    assert (len(found.blocks), found.tokens) == (entry.blocks, entry.tokens)
    made = tokenrt.reduce(path, method="slice", budget=Budget.tokens(keep)).model
    with torch.no_grad():
        wanted, full = net(*inputs.values(), keep=keep).numpy(), net(*inputs.values()).numpy()
    np.testing.assert_allclose(run(path, arrays(inputs))[0], full, rtol=0, atol=5e-6)
    np.testing.assert_allclose(run(made, arrays(inputs))[0], wanted, rtol=0, atol=5e-6)
    assert np.abs(full - wanted).max() > 0.01


def test_gated_blocks_in_half_precision() -> None:
    """Casts to float around the softmax; the net in half precision rounds elsewhere, so the tolerance is that of rounding."""
    path, keep = exported("form_conditioned", dtype="fp16"), CUT["form_conditioned"]
    net, inputs, _ = zoo.build("form_conditioned")
    halves = {name: value.half() for name, value in inputs.items()}
    made = tokenrt.reduce(path, method="slice", budget=Budget.tokens(keep)).model
    with torch.no_grad():
        wanted, full = net.half()(*halves.values(), keep=keep).numpy(), net(*halves.values()).numpy()
    found = run(made, arrays(halves))[0]
    assert np.abs(full - wanted).max() > 0.3
    np.testing.assert_allclose(found.astype(np.float32), wanted.astype(np.float32), rtol=0, atol=0.02)


def test_windows_before_a_block_of_global_attention() -> None:
    """The first block attends within windows, which the second joins: both are reduced as by hand, together and alone."""
    path = exported("form_tower_windows")
    net, inputs, _ = zoo.build("form_tower_windows")
    assert len(tokenrt.inspect(path).blocks) == 2
    for keep in ((16, 9), (11, 11), (13, 9)):
        made = tokenrt.reduce(path, method="slice", budget=Budget.tokens([*keep])).model
        with torch.no_grad():
            wanted = net(*inputs.values(), keep=keep).numpy()
        np.testing.assert_allclose(run(made, arrays(inputs))[0], wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["form_shared_key", "form_detector", "form_detector_batch_first"])
def test_equal_tokens_merge_without_loss(name: str) -> None:
    """The right value is the net's own: without positions, a picture of patches that all come twice."""
    path = exported(name, zero_positions=True)
    net, inputs, _ = zoo.build(name, zero_positions=True)
    picture = inputs["pixel_values"].unflatten(3, (-1, 16))
    picture[:, :, :, 1::2] = picture[:, :, :, ::2]
    picture = picture.flatten(3)
    made = tokenrt.reduce(path, method="tome", budget=Budget.remove(8, layers=[0])).model
    with torch.no_grad():
        wanted = net(picture).numpy()
    np.testing.assert_allclose(run(made, {"pixel_values": picture.numpy()})[0], wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("method", ["tome", "topk", "evit"])
def test_learned_tokens_behind_the_patches_stay(method: str) -> None:
    """They are read by position at the end; the map says that each is a token of its own."""
    path = exported("form_trailing_tokens")
    result = tokenrt.reduce(path, method=method, budget=Budget.remove(5, layers=[0]), source_map=True)
    went = run(result.model, arrays(zoo.examples("form_trailing_tokens")))[-1]
    assert went.shape[1] == 19
    for row in went:
        assert (row[16:] >= 0).all()
        assert all((row == place).sum() == 1 for place in row[16:])


REFUSED = {
    "form_sigmoid": r"Sigmoid node '\S+': Sigmoid makes the weights .* not a softmax.*tokens can leave only at blocks",
    "form_over_channels": r"Softmax node '\S+': the axis its softmax runs over is not .* counts .*tokens can leave only at",
    "form_heads_summed": r"Softmax node '\S+': its result is added .* at Add node '\S+' together with .*one product",
    "form_head_by_head": r"Softmax node '\S+': its result meets Concat node '\S+'.*one product over all heads",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_takes_no_reduction_is_refused_by_name(name: str) -> None:
    path = exported(name)
    assert not tokenrt.inspect(path).blocks
    for method in ("slice", "tome"):
        with pytest.raises(NothingToDoError) as caught:
            tokenrt.reduce(path, method=method, budget=Budget.remove(2))
        assert re.search(REFUSED[name], str(caught.value)), str(caught.value)
