"""timm models by name, pretrained or with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenrt.errors import ExportError
from tokenrt.export.sources.contract import Loaded, Source, first_line, no_weights, pictures, unknown

if TYPE_CHECKING:
    from tokenrt.export.options import Options


def load(parts: tuple[str, ...], options: Options) -> Loaded:
    """Make the model; `image_size` is handed on to models that take it, else only the input changes."""
    import timm

    (name,) = parts
    bare = name.split(".")[0]
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(bare):
        raise unknown("timm", name, timm.list_models())
    module = _create(name, options)
    channels, height, width = _input_size(module, options)
    return Loaded(
        module=module,
        draw=pictures(channels, height, width),
        model=f"{type(module).__name__} {name}",
        weights=f"random (seed {options.seed})" if options.random_weights else "pretrained",
        result="logits" if getattr(module, "num_classes", 0) else "features",
    )


def _create(name: str, options: Options) -> Any:
    import timm

    size: dict[str, Any] = {} if options.image_size is None else {"img_size": options.image_size}
    for extra in (size, {}) if size else ({},):
        try:
            return timm.create_model(name, pretrained=not options.random_weights, **extra)
        except TypeError as cause:
            # Convolutional models take any size and have no img_size argument.
            if not extra or "img_size" not in str(cause):
                raise ExportError(f"timm cannot make {name}: {first_line(cause)}") from cause
        except Exception as cause:
            if options.random_weights:
                raise ExportError(f"timm cannot make {name}: {first_line(cause)}") from cause
            remedy = "check the network, or export the architecture alone with --random-weights"
            raise no_weights(f"timm:{name}", cause, remedy) from cause
    raise ExportError(f"timm cannot make {name} at image size {options.image_size}")


def _input_size(module: Any, options: Options) -> tuple[int, int, int]:
    channels, height, width = (getattr(module, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    if options.image_size is not None:
        height = width = options.image_size
    return channels, height, width


SOURCE = Source(
    form="timm:NAME",
    pattern=r"timm:(.+)",
    packages=(("torch", "export"), ("timm", "vision")),
    load=load,
)
