"""Configurations and weights of Hugging Face models: of a folder, a file, the hub, or a model type by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenrt.errors import ExportError
from tokenrt.export.sources.contract import first_line, no_weights, unknown

if TYPE_CHECKING:
    from tokenrt.export.options import Options


def configuration(name: str, options: Options) -> Any:
    """The configuration of a folder, a file, a hub name, or (with random weights) a model type."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if not Path(name).exists() and name in CONFIG_MAPPING:
        if not options.random_weights:
            raise ExportError(
                f"{name!r} is a model type, which has no weights: add --random-weights, or name a model of "
                "the hub or a folder"
            )
        return AutoConfig.for_model(name)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ExportError(f"the folder {name} holds no config.json, so it is no Hugging Face model")
    if "/" not in name and not Path(name).exists() and options.random_weights:
        raise unknown("Hugging Face transformers", name, CONFIG_MAPPING)
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as cause:
        where = "configuration" if Path(name).exists() else "Hugging Face model"
        raise ExportError(
            f"cannot read the {where} {name}: {_shortest(cause)}; without a network give a folder, or a "
            "model type with --random-weights (hf:vit, hf:dinov2, hf:bert)"
        ) from cause


def instance(cls: Any, name: str, config: Any, options: Options) -> tuple[Any, list[str]]:
    """A module of class `cls` with its weights, and a note where the checkpoint lacks some.

    Raises: ExportError when the weights cannot be read, or the checkpoint lacks most of them.
    """
    if options.random_weights:
        return cls(config), []
    import torch

    folder = str(Path(name).parent) if Path(name).is_file() else name
    try:
        module, loading = cls.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True
        )
    except Exception as cause:
        remedy = "give a folder with weights, or export the architecture alone with --random-weights"
        raise no_weights(f"hf:{name}", cause, remedy) from cause
    missing = sorted(loading["missing_keys"])
    if 2 * len(missing) > len(module.state_dict()):
        raise ExportError(
            f"the checkpoint of {name} lacks {len(missing)} of the {len(module.state_dict())} weights of "
            f"{cls.__name__} (first: {missing[0]}); export the class it was saved from through "
            "FILE.py:FUNCTION"
        )
    note = f"not in the checkpoint, initialised at random: {', '.join(missing)}"
    return module, [note] if missing else []


def described(options: Options) -> str:
    """Where the weights came from, for the report."""
    return f"random (seed {options.seed})" if options.random_weights else "pretrained"


def _shortest(error: BaseException) -> str:
    """First line of the error itself: transformers explains itself better than the cause below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else first_line(error)
