"""Trained tensors that some methods need, from a file or a mapping."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Method, Site
from tokenrt.passes.ops.contract import Array


@dataclass(frozen=True)
class Trained(Method):
    """A method that reads trained tensors; `needs` names them.

    Option weights: a .npz or .safetensors file, or a mapping of names to arrays. A tensor called
    `block3.NAME` serves block 3, one called `NAME` every block that has none of its own.
    """

    optional: ClassVar[Mapping[str, str]] = {}
    """Trained tensors that it can do without, as in `needs`."""

    weights: Any = None

    def tensor(self, name: str, site: Site) -> Array:
        """Return the tensor `name` for this site as float32. Raises: MethodError naming what is wanted."""
        tensors = self._tensors()
        own = f"block{site.block}.{name}"
        found = tensors.get(own, tensors.get(name))
        if found is None:
            raise MethodError(
                f"the weights of method {self.name!r} lack {name!r} (or {own!r}); {self.wanted()}"
            )
        letters = self._known()[name]
        rank = len(letters.split(","))
        array = np.asarray(found)
        if array.ndim != rank or (array.dtype.kind != "f" and str(array.dtype) != "bfloat16"):
            raise MethodError(
                f"tensor {name!r} of method {self.name!r} must be floating-point [{letters}], got "
                f"{array.dtype} {list(array.shape)}"
            )
        return array.astype(np.float32)

    def check(self, name: str, array: Array, shape: tuple[int, ...]) -> None:
        """Raise MethodError unless `array` has this shape."""
        if array.shape != shape:
            raise MethodError(
                f"tensor {name!r} of method {self.name!r} [{self._known()[name]}] must have shape {list(shape)} "
                f"here, got {list(array.shape)}"
            )

    def wanted(self) -> str:
        """Say which file and tensors the method wants."""
        listed = ", ".join(f"{name} [{shape}]" for name, shape in self._known().items())
        return f"it takes --set weights=FILE (.npz or .safetensors) with the tensors {listed}"

    def _known(self) -> Mapping[str, str]:
        return {**self.needs, **self.optional}

    def _tensors(self) -> Mapping[str, Any]:
        if self.weights is None:
            raise MethodError(f"method {self.name!r} needs trained weights: {self.wanted()}")
        return self.weights if isinstance(self.weights, Mapping) else _load(Path(self.weights), self)


def _load(path: Path, method: Trained) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(os.fspath(path))
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except ImportError as cause:
        raise MethodError(
            f"reading {path} needs safetensors: pip install safetensors, or use .npz"
        ) from cause
    except Exception as cause:  # each reader raises its own kinds for a broken file
        raise MethodError(f"cannot read the weights {path}: {cause}; {method.wanted()}") from cause
