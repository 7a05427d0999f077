"""An input of a model, as data has to fit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Input:
    """An input both models take; None for a size that neither fixes."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name!r} [{','.join('?' if size is None else str(size) for size in self.dims)}]"
