"""The `Ops` protocol on torch tensors, so that what a method was written as can be trained: gradients pass its operators.

A choice has no gradient. So what a choosing operator reads is drawn around what the method computed, and the likelihood
of the draw carries the gradient instead (Williams, Simple Statistical Gradient-Following Algorithms, 1992): what was
drawn where the loss came out lower becomes more likely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops.numpy_backend import NumpyOps
from tokenrt.passes.ops.standard import ONNX_TYPES

if TYPE_CHECKING:
    from torch import Generator, Tensor


CHOICES = frozenset({"TokenSelect", "TokenMatch"})
"""Operators whose first input decides and whose results are positions."""


class Weight(np.lib.mixins.NDArrayOperatorsMixin):
    """A tensor under training where a method expects an array: what NumPy makes of it keeps its gradient."""

    dtype = np.dtype(np.float32)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.contiguous()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        return self.tensor.ndim

    @property
    def T(self) -> Weight:  # noqa: N802 - NumPy's name
        return self.transpose(*reversed(range(self.ndim)))

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: Any) -> Weight:
        return Weight(self.tensor[index])

    def astype(self, kind: Any) -> Weight:
        """Itself: all is computed in float32."""
        return self

    def transpose(self, *axes: int) -> Weight:
        return Weight(self.tensor.permute(axes))

    def reshape(self, *shape: int) -> Weight:
        return Weight(self.tensor.reshape(shape))

    def sum(self, axis: int) -> Weight:
        return Weight(self.tensor.sum(axis))

    def __array_ufunc__(self, ufunc: np.ufunc, how: str, *inputs: Any, **options: Any) -> Weight:
        """NumPy's elementwise functions and products by torch's of the same name."""
        import torch

        if how != "__call__" or options:
            raise UnsupportedError(f"no gradient passes {ufunc.__name__}.{how} of a tensor under training")
        return Weight(getattr(torch, ufunc.__name__)(*map(tensor, inputs)))

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Weight:
        import torch

        if function is not np.linalg.norm:
            raise UnsupportedError(f"no gradient passes {function.__name__} of a tensor under training")
        return Weight(torch.linalg.norm(self.tensor, dim=options["axis"], keepdim=options["keepdims"]))

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Its memory, for NumPy to make an array of that has the Weight as its base: `tensor` finds the way back by it."""
        found: dict[str, Any] = self.tensor.detach().numpy().__array_interface__
        return found


def tensor(value: Any) -> Tensor:
    """A value as a tensor: a Weight's own, an array's, a number's. Floating-point ones are float32."""
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Weight):
        return value.tensor
    array = np.asarray(value)
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, Weight):
        first = (array.ctypes.data - owner.tensor.data_ptr()) // array.itemsize
        return owner.tensor.as_strided(array.shape, [step // array.itemsize for step in array.strides], first)
    return torch.from_numpy(np.array(array, np.float32 if array.dtype.kind == "f" else None))


class TorchOps:
    """Runs operators on tensors, float32; those that no gradient has to pass by their NumPy reference.

    spread: the standard deviation of what choices read around what they are given; 0 chooses as the method does.
    Draws come in pairs: those of the second half of a batch mirror those of the first.
    """

    def __init__(self, spread: float = 0.0, generator: Generator | None = None) -> None:
        self.spread, self.generator = spread, generator
        self.likelihood: Tensor | None = None
        """[B] logarithm of the likelihood of all draws, up to a constant; None before the first."""
        self._numpy = NumpyOps()

    def __call__(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        """Run operator `name`. Raises: UnsupportedError where a gradient would end."""
        tensors = [tensor(value) for value in inputs]
        if name in FUNCTIONS:
            return FUNCTIONS[name](*tensors, **attributes)
        if name in CHOICES:
            tensors[0] = self._drawn(tensors[0])
        found = self._numpy(name, *(each.detach().numpy() for each in tensors), **attributes)
        results = [tensor(array) for array in (found if isinstance(found, tuple) else (found,))]
        if any(each.requires_grad for each in tensors) and any(each.is_floating_point() for each in results):
            raise UnsupportedError(f"no gradient passes operator {name}")
        return tuple(results) if isinstance(found, tuple) else results[0]

    def constant(self, array: Any) -> Tensor:
        """Return a constant as a tensor."""
        return tensor(array)

    def _drawn(self, center: Tensor) -> Tensor:
        """A draw around `center` [B,...]; adds its likelihood, by which alone `center` gets a gradient."""
        import torch

        if not self.spread:
            return center.detach()
        half = torch.randn(len(center) // 2, *center.shape[1:], generator=self.generator)
        drawn = center.detach() + self.spread * torch.cat([half, -half])
        own = -((drawn - center) ** 2).flatten(1).sum(1) / (2 * self.spread**2)
        self.likelihood = own if self.likelihood is None else self.likelihood + own
        return drawn


def _torch(name: str) -> Callable[..., Tensor]:
    """The function of torch called so."""

    def run(*inputs: Tensor) -> Tensor:
        import torch

        found: Tensor = getattr(torch, name)(*inputs)
        return found

    return run


def _axes(axes: Any) -> list[int]:
    return [int(axis) for axis in np.ravel(axes)]


def _cast(x: Tensor, to: int) -> Tensor:
    import torch

    name = ONNX_TYPES[to]
    return x.to(torch.float32 if "float" in name else getattr(torch, name))


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None) -> Tensor:
    cut, first = [slice(None)] * x.ndim, range(len(starts))
    for axis, start, end in zip(
        first if axes is None else _axes(axes), _axes(starts), _axes(ends), strict=True
    ):
        cut[axis] = slice(start, end)
    return x[tuple(cut)]


def _gather(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, index.flatten()).reshape(shape)


def _gather_rows(x: Tensor, index: Tensor, batch_dims: int) -> Tensor:
    """GatherND as methods use it: rows of each image."""
    if batch_dims != 1 or index.shape[-1] != 1:
        raise UnsupportedError(f"GatherND of {batch_dims} batch axes and {index.shape[-1]} indices a row")
    return x.take_along_dim(index.reshape(*index.shape[:2], *[1] * (x.ndim - 2)), 1)


def _concat(*parts: Tensor, axis: int) -> Tensor:
    import torch

    return torch.cat(parts, axis)


def _squeeze(x: Tensor, axes: Tensor) -> Tensor:
    return x.squeeze(tuple(_axes(axes)))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    (axis,) = _axes(axes)
    return x.unsqueeze(axis)


def _reshape(x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[at] if size == 0 else size for at, size in enumerate(_axes(shape))])


FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "Add": _torch("add"),
    "Cast": _cast,
    "CastLike": lambda x, like: x.to(like.dtype),
    "Concat": _concat,
    "Div": _torch("divide"),
    "Erf": _torch("erf"),
    "Exp": _torch("exp"),
    "Gather": _gather,
    "GatherElements": lambda x, index, axis=0: x.take_along_dim(index, axis),
    "GatherND": _gather_rows,
    "Log": _torch("log"),
    "MatMul": _torch("matmul"),
    "Max": _torch("maximum"),
    "Mul": _torch("multiply"),
    "Neg": _torch("negative"),
    "ReduceMax": lambda x, axes, keepdims=1: x.amax(_axes(axes), bool(keepdims)),
    "ReduceMean": lambda x, axes, keepdims=1: x.mean(_axes(axes), bool(keepdims)),
    "ReduceSum": lambda x, axes, keepdims=1: x.sum(_axes(axes), bool(keepdims)),
    "Reshape": _reshape,
    "Sigmoid": _torch("sigmoid"),
    "Slice": _slice,
    "Softmax": lambda x, axis=-1: x.softmax(axis),
    "Sqrt": _torch("sqrt"),
    "Squeeze": _squeeze,
    "Sub": _torch("subtract"),
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
    "Where": _torch("where"),
}
"""Operators that gradients pass; an ONNX operator's name -> torch."""
