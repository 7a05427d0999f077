"""A module with a plain interface: tensors in, in a fixed order, and a tuple of named tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenrt.errors import ExportError
from tokenrt.export.sources.contract import Loaded, first_line


class Flat(nn.Module):
    """Calls the module of `loaded` with its inputs in order and flattens what comes back.

    Mappings give their keys as names, sequences append an index; what is no tensor (a cache) is left out.
    """

    def __init__(self, loaded: Loaded, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.loaded, self.names = loaded.module, loaded, names

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Tensors of the result, in the order of `named`."""
        return tuple(self.named(*values).values())

    def named(self, *values: Tensor) -> dict[str, Tensor]:
        """The result's tensors by name."""
        if self.loaded.by_name:
            result = self.module(**dict(zip(self.names, values, strict=True)), **self.loaded.arguments)
        else:
            result = self.module(*values, **self.loaded.arguments)
        return dict(_tensors(self.loaded.result, result))


def run(flat: Flat, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of one call by name, without gradients.

    Raises: ExportError when the module fails on these inputs or returns no tensor.
    """
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
    try:
        with torch.no_grad():
            outputs = flat.named(*inputs.values())
    except Exception as cause:
        raise ExportError(
            f"{flat.loaded.model} does not run in torch on {shapes}: {first_line(cause)}"
        ) from cause
    if not outputs:
        raise ExportError(
            f"{flat.loaded.model} returned no tensor for {shapes}, so there is nothing to export"
        )
    return outputs


def _tensors(name: str, value: Any) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _tensors(str(key), item)]
    if isinstance(value, list | tuple):
        return [pair for index, item in enumerate(value) for pair in _tensors(f"{name}_{index}", item)]
    return []
