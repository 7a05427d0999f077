"""torchvision models by name, with their default weights or random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenrt.errors import ExportError
from tokenrt.export.sources.contract import (
    IMAGE_SIZE,
    Loaded,
    Source,
    first_line,
    no_weights,
    pictures,
    unknown,
)

if TYPE_CHECKING:
    from tokenrt.export.options import Options


def load(parts: tuple[str, ...], options: Options) -> Loaded:
    """Make the model; `image_size` is handed on to the plain transformers, whose tables depend on it."""
    from torchvision import models

    (name,) = parts
    if name not in models.list_models():
        raise unknown("torchvision", name, models.list_models())
    side = options.image_size or _native_size(name)
    arguments: dict[str, Any] = {"weights": None if options.random_weights else "DEFAULT"}
    if options.image_size is not None and name.startswith("vit_"):
        arguments["image_size"] = options.image_size
    try:
        module = models.get_model(name, **arguments)
    except Exception as cause:
        if options.random_weights:
            raise ExportError(f"torchvision cannot make {name}: {first_line(cause)}") from cause
        remedy = "check the network, or export the architecture alone with --random-weights"
        raise no_weights(f"torchvision:{name}", cause, remedy) from cause
    return Loaded(
        module=module,
        draw=pictures(3, side, side),
        model=f"{type(module).__name__} {name}",
        weights=f"random (seed {options.seed})" if options.random_weights else "pretrained (DEFAULT)",
        result="logits",
    )


def _native_size(name: str) -> int:
    from torchvision import models

    try:
        crop = models.get_model_weights(name)["DEFAULT"].transforms().crop_size
    except (AttributeError, KeyError, ValueError):
        return IMAGE_SIZE
    return int(crop[0] if isinstance(crop, list | tuple) else crop)


SOURCE = Source(
    form="torchvision:NAME",
    pattern=r"torchvision:(.+)",
    packages=(("torch", "export"), ("torchvision", "vision")),
    load=load,
)
