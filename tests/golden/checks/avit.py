"""A-ViT: a whole network; at each block the tokens that go on are those the method keeps, were it given their count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.block import Block
from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_avit(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """One image at a time, since each halts in its own way."""
    for image in range(len(arrays["x"])):
        _check_image(arrays, params, backend, image)


def _check_image(arrays: Arrays, params: Mapping[str, Any], backend: str, image: int) -> None:
    x = arrays["x"][image].astype(np.float64)
    count, depth = len(x), params["depth"]
    active = np.arange(count)
    total, used, cost = np.zeros(count), np.zeros(count), np.zeros(count)
    output = np.zeros_like(x)
    carried: dict[str, Any] = {}
    for number in range(depth):
        equal(
            f"active before block {number}",
            np.isin(np.arange(count), active),
            arrays["mask"][number, image] == 1,
        )
        if not len(active):
            return
        stem = f"w_b{number}_"
        weights = {
            "w_" + name.removeprefix(stem): value for name, value in arrays.items() if name.startswith(stem)
        }
        block = Block(weights, params["num_heads"], params["block_norm_eps"])
        rows = x[active][None]
        branch, _ = block.attend(rows)
        x[active] = block.feed_forward(rows + branch)[0]

        last = number == depth - 1
        halting = 1 / (1 + np.exp(params["gate_center"] - params["gate_scale"] * x[active, 0]))
        close(f"halting scores of block {number}", halting, arrays["halt"][number, image][active])
        remainder = 1 - total[active]
        total[active] += 1 if last else halting
        goes_on = total[active] < 1 - params["eps"]
        output[active] += x[active] * np.where(goes_on, halting, remainder)[:, None]
        used[active] += 1
        cost[active] += np.where(goes_on, 1, 1 + remainder)
        carried = _kept(x[active], carried, goes_on, total[active], params, backend)
        active = active[goes_on]
    close("blocks used", used, arrays["counter"][image])
    close("ponder cost", cost, arrays["rho"][image])
    # Where no weights of the last norm are recorded it had those a new one has.
    plain = {"w_norm_weight": np.ones(x.shape[1]), "w_norm_bias": np.zeros(x.shape[1])}
    final = Block({**plain, **arrays}, params["num_heads"], params["norm_eps"]).norm("norm", output)
    close("tokens", final, arrays["y_tokens"][image])
    close("class token", final[0], arrays["y"][image])


def _kept(
    x: Any, carried: Mapping[str, Any], goes_on: Any, total: Any, params: Mapping[str, Any], backend: str
) -> dict[str, Any]:
    """Compare what the method keeps, and the sums it hands on, with the tokens that go on."""
    keep = int(goes_on.sum())
    if keep in (0, len(x)):
        return {"halting": total[None, goes_on]}
    found = apply_method(
        "avit",
        {"x": x[None]},
        keep=keep,
        protect=0,
        backend=backend,
        state=carried,
        gate_scale=params["gate_scale"],
        gate_center=params["gate_center"],
    )
    equal("tokens that go on", found["index"][0], np.flatnonzero(goes_on))
    close("sums of halting scores", found["state_halting"][0], total[goes_on])
    close("what they hold", found["tokens"][0], x[goes_on])
    return {"halting": found["state_halting"]}


CHECKS: Mapping[str, Check] = {"avit": check_avit}
