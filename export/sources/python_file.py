"""A function of the user's own Python file that returns a module, alone or with example inputs."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenrt.errors import ExportError
from tokenrt.export.sources.contract import IMAGE_SIZE, Loaded, Source, first_line, pictures

if TYPE_CHECKING:
    from torch import Tensor

    from tokenrt.export.options import Options


def load(parts: tuple[str, ...], options: Options) -> Loaded:
    """Call the function: it returns a module, or (module, inputs): a tensor, a sequence or a mapping."""
    from torch import nn

    path, name = Path(parts[0]), parts[1]
    made = _call(_function(path, name), path, name)
    module, given = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise ExportError(
            f"{path}:{name} returned {_describe(made)}; it must return a torch.nn.Module, or (module, inputs)"
        )
    label = f"{type(module).__name__} of {name}()"
    if given is None:
        if len(required := _parameters(module, required=True)) > 1:
            raise ExportError(
                f"{path}:{name} returned a {type(module).__name__} whose forward takes {', '.join(required)}"
                "; return (module, inputs) with one example tensor for each"
            )
        side = options.image_size or IMAGE_SIZE
        note = f"no example inputs given: exported with one picture input of {side} x {side}"
        return Loaded(module, pictures(3, side, side), label, "as the function made them", notes=(note,))
    inputs = _named(given, module, f"{path}:{name}")
    count = next((tensor.shape[0] for tensor in inputs.values() if tensor.ndim), 1)
    return Loaded(
        module=module,
        draw=lambda batch, seed: {key: _rows(inputs[key], count, batch, seed) for key in inputs},
        model=label,
        weights="as the function made them",
        by_name=isinstance(given, Mapping),
        batched=frozenset(key for key, tensor in inputs.items() if tensor.ndim and tensor.shape[0] == count),
    )


def _function(path: Path, name: str) -> Callable[[], Any]:
    if not path.is_file():
        raise ExportError(f"no such file: {path}")
    label = f"_tokenrt_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(label, path)
    if spec is None or spec.loader is None:
        raise ExportError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as cause:
        raise ExportError(f"importing {path} failed: {first_line(cause)}") from cause
    function = getattr(module, name, None)
    if not callable(function):
        public = [key for key, item in vars(module).items() if inspect.isfunction(item)]
        close = difflib.get_close_matches(name, public, n=3, cutoff=0.5) or public
        hint = f"it has {', '.join(close)}" if close else "it has no functions"
        raise ExportError(f"{path} has no function {name!r}; {hint}")
    return function  # type: ignore[no-any-return]


def _call(function: Callable[[], Any], path: Path, name: str) -> Any:
    try:
        return function()
    except Exception as cause:
        raise ExportError(
            f"{path}:{name}() failed: {first_line(cause)}; it is called without arguments"
        ) from cause


def _parameters(module: Any, required: bool = False) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(module.forward).parameters.values()
    return [
        item.name
        for item in found
        if item.kind in kinds and not (required and item.default is not item.empty)
    ]


def _named(given: Any, module: Any, where: str) -> dict[str, Tensor]:
    import torch

    if isinstance(given, Mapping):
        named = dict(given)
    else:
        tensors = [given] if isinstance(given, torch.Tensor) else given
        if not isinstance(tensors, list | tuple):
            raise ExportError(f"{where} returned inputs of type {type(given).__name__}; {_ACCEPTED}")
        names = _parameters(module)
        named = {names[i] if i < len(names) else f"input_{i}": tensor for i, tensor in enumerate(tensors)}
    wrong = {key: value for key, value in named.items() if not isinstance(value, torch.Tensor)}
    if wrong or not named:
        found = ", ".join(f"{key}: {type(value).__name__}" for key, value in wrong.items()) or "none"
        raise ExportError(f"{where} returned inputs that are not tensors ({found}); {_ACCEPTED}")
    return named


_ACCEPTED = "give a tensor, a tuple or list of tensors, or a mapping from argument names to tensors"


def _rows(example: Tensor, count: int, batch: int, seed: int) -> Tensor:
    """`batch` rows of an example [count, ...]: its own repeated, floats moved by a little noise."""
    import torch

    if not example.ndim or example.shape[0] != count:
        return example
    rows = example.detach()[torch.arange(batch) % count].clone()
    if rows.is_floating_point() and (batch > count or seed):
        generator = torch.Generator().manual_seed(seed)
        scale = 0.1 * example.detach().float().std().nan_to_num(1.0).clamp_min(1e-3)
        rows += (scale * torch.randn(rows.shape, generator=generator)).to(rows.dtype)
    return rows


def _describe(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__


SOURCE = Source(
    form="FILE.py:FUNCTION",
    pattern=r"(.+\.py):([A-Za-z_]\w*)",
    packages=(("torch", "export"),),
    load=load,
)
