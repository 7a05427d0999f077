"""What a source of models provides. A source is one file here that defines `SOURCE`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenrt.errors import DependencyError, ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tokenrt.export.options import Options

IMAGE_SIZE = 224
"""Side of an example picture where the model does not say; most published vision models take it."""


@dataclass(frozen=True)
class Loaded:
    """A module ready to export.

    `draw(batch, seed)` makes inputs by name, axis 0 the batch in those that `batched` names (None: in all).
    The module is called with them in order, or by name where `by_name`, plus the constant `arguments`.
    `result` names a bare tensor result; a mapping's own keys name the others.
    """

    module: nn.Module
    draw: Callable[[int, int], dict[str, Tensor]]
    model: str
    weights: str
    by_name: bool = False
    batched: frozenset[str] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    result: str = "output"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One kind of source: the texts it takes, as a pattern whose groups go to `load`, and how it loads.

    `parts` are those of a model it can export alone.
    """

    form: str
    pattern: str
    packages: tuple[tuple[str, str], ...]
    load: Callable[[tuple[str, ...], Options], Loaded]
    parts: tuple[str, ...] = ()

    def require(self) -> None:
        """Import the packages this source needs. Raises: DependencyError with the extra that brings them."""
        for package, extra in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as cause:
                raise DependencyError(package, extra, f"exporting from {self.form}") from cause


def pictures(*shape: int, batched: bool = True) -> Callable[[int, int], dict[str, Tensor]]:
    """Draw normal noise as `pixel_values` [B, *shape], as [*shape] where there is no batch."""

    def draw(batch: int, seed: int) -> dict[str, Tensor]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        axes = (batch, *shape) if batched else shape
        return {"pixel_values": torch.randn(axes, generator=generator)}

    return draw


def first_line(error: BaseException) -> str:
    """The first line that says something, of the error everything else was raised from."""
    seen = {id(error)}
    while (deeper := error.__cause__ or error.__context__) is not None and id(deeper) not in seen:
        seen.add(id(deeper))
        error = deeper
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def unknown(kind: str, name: str, known: Iterable[str]) -> ExportError:
    """The error for a model name `kind` does not have, with the nearest ones it has."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {len(names)}, such as {names[0]}"
    return ExportError(f"{kind} has no model called {name!r}; {hint}")


def no_weights(name: str, error: BaseException, remedy: str) -> ExportError:
    """The error for weights that cannot be fetched or read."""
    return ExportError(f"cannot load the weights of {name}: {first_line(error)}; {remedy}")
