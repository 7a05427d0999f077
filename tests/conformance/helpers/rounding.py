"""How far rounding alone can carry a method: its own steps in float64, each result off by one rounding of float32.

That is the yardstick of the tolerance rule where no plain implementation is at hand, and the judge of ties: a
choice that such noise changes is one that float32 arithmetic may make either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tokenrt import apply_method
from tokenrt.passes.ops import OPERATORS, numpy_backend

UNIT = 2.0**-24
STEPS = 4
"""Roundings inside one tokenrt operator, of one value."""

EXACT = frozenset("Identity Cast CastLike Concat Expand Gather GatherElements GatherND Reshape Slice Squeeze".split()) | {
    "Neg", "Abs", "Max", "Min", "ReduceMax", "ReduceMin", "ScatterElements", "TopK", "Transpose", "Unsqueeze", "Where",
    "TokenRestore", "TokenSelect",
}  # fmt: skip


class Noisy(numpy_backend.NumpyOps):
    """NumPy in float64, with the rounding of float32 played by seeded noise.

    ties: whether ties are sought, so that all counts that float32 may do: the error of a sum grows with the square root of
    its terms, added one after the other, and what a tokenrt operator compares inside errs as well.
    """

    rng = np.random.default_rng(0)
    ties = False

    def __call__(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        if self.ties and name in OPERATORS and name not in EXACT:
            inputs = tuple(self._shaken(np.asarray(item), STEPS, 0.0) for item in inputs)
        result = super().__call__(name, *inputs, **attributes)
        if name in EXACT:
            return result
        steps = STEPS if name in OPERATORS else 1
        terms = self._terms(name, inputs, attributes)
        if name == "Softmax":
            result = result * self._divisor(result, attributes.get("axis", -1))
        if isinstance(result, tuple):
            return tuple(
                self._shaken(item, steps, part)
                for item, part in zip(result, (terms, *[0.0] * 9), strict=False)
            )
        return self._shaken(result, steps, terms)

    def _terms(self, name: str, inputs: tuple[Any, ...], attributes: Mapping[str, Any]) -> Any:
        """The magnitudes of its terms added up, for an operator that adds many: a sum errs in units of those."""
        if name in ("TokenCombine", "TokenMeans"):
            return _magnitude(inputs[0]).max(axis=1, keepdims=True)
        if name in ("MatMul", "ReduceSum", "ReduceMean"):
            total = super().__call__(name, *(_magnitude(item) for item in inputs), **attributes)
            count = inputs[0].shape[-1] if name == "MatMul" else inputs[0].size // max(total.size, 1)
            return total * (float(count) ** 0.5 if self.ties else 1.0)
        return 0.0

    def _divisor(self, shares: Any, axis: int) -> Any:
        """The error of a softmax's divisor, which all its entries share: n terms of one sign err by sqrt(n) roundings.

        Source: Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019.
        """
        shape = np.delete(shares.shape, axis)
        noise = self.rng.uniform(-1, 1, shape) * UNIT * shares.shape[axis] ** 0.5
        return 1 + np.expand_dims(noise, axis)

    def _shaken(self, value: Any, steps: int, terms: Any) -> Any:
        if value.dtype.kind != "f":
            return value
        with np.errstate(all="ignore"):
            # A difference that cancels errs in units of its terms, not of itself: the largest entry stands for those.
            finite = np.maximum(_magnitude(value), terms)
            scale = np.maximum(
                finite, finite.max(initial=0, axis=-1, keepdims=True) if value.ndim else finite
            )
            noise = np.where(np.isin(value, (0.0, 1.0)), 0, self.rng.uniform(-1, 1, value.shape) * scale)
            return value + steps * UNIT * noise


def _magnitude(value: Any) -> Any:
    """Absolute values of floats, 0 for what is not finite; whole numbers (axes) as they are."""
    array = np.asarray(value)
    return np.abs(np.where(np.isfinite(array), array, 0)) if array.dtype.kind == "f" else array


def shaken(
    monkeypatch: pytest.MonkeyPatch, draws: int, name: str, given: Mapping[str, Any], *, ties: bool = False
) -> list[dict[str, Any]]:
    """Results of the NumPy backend under noise, `draws` times. ties: see `Noisy`."""
    with monkeypatch.context() as patch:
        patch.setattr(numpy_backend, "NumpyOps", Noisy)
        patch.setattr(Noisy, "ties", ties)
        Noisy.rng = np.random.default_rng(draws)
        return [apply_method(name, backend="numpy", **given) for _ in range(draws)]
