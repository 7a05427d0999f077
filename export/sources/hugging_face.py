"""Hugging Face models: a hub name, a local folder, a config.json, or the name of a model type."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
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
    from torch import Tensor

    from tokenrt.export.options import Options

SEQUENCE_LENGTH = 128
"""Tokens of a text input where none is asked for: token reduction needs a fixed count."""


def load(parts: tuple[str, ...], options: Options) -> Loaded:
    """Make the class the configuration names, the plain encoder where it names none.

    Of a model with a vision tower (CLIP, SigLIP) the tower is exported.
    """
    (name,) = parts
    config = _config(name, options)
    cls, config, notes = _class(name, config)
    if options.image_size is not None and options.random_weights and hasattr(config, "image_size"):
        config.image_size = options.image_size
    if getattr(config, "is_encoder_decoder", False):
        raise ExportError(f"{name} is an encoder and a decoder; export one of them through FILE.py:FUNCTION")
    missing: list[str] = []
    if options.random_weights:
        module = cls(config)
    else:
        module, missing = _pretrained(cls, name, config)
    notes += [f"not in the checkpoint, initialised at random: {', '.join(missing)}"] if missing else []
    arguments: dict[str, Any] = {"return_dict": True}
    takes = set(inspect.signature(module.forward).parameters)
    if "use_cache" in takes:
        arguments["use_cache"] = False
    if _resized(config, options) and "interpolate_pos_encoding" in takes:
        arguments["interpolate_pos_encoding"] = True
    draw, note = _inputs(name, module, config, options, takes)
    return Loaded(
        module=module,
        draw=draw,
        model=cls.__name__,
        weights=f"random (seed {options.seed})" if options.random_weights else "pretrained",
        by_name=True,
        arguments=arguments,
        result="last_hidden_state",
        notes=tuple(notes + note),
    )


def _config(name: str, options: Options) -> Any:
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


def _class(name: str, config: Any) -> tuple[Any, Any, list[str]]:
    import transformers

    encoders: Any = transformers.MODEL_MAPPING
    tower = getattr(config, "vision_config", None)
    if tower is not None:
        if type(tower) not in encoders:
            raise ExportError(
                f"the vision tower of {name} ({type(tower).__name__}) has no class of its own in "
                "transformers; export it through FILE.py:FUNCTION"
            )
        cls = encoders[type(tower)]
        return cls, tower, [f"{name} has text and vision parts: the vision tower {cls.__name__} was exported"]
    for architecture in getattr(config, "architectures", None) or ():
        if hasattr(transformers, architecture):
            return getattr(transformers, architecture), config, []
    if type(config) not in encoders:
        raise ExportError(f"transformers has no model class for {type(config).__name__} of {name}")
    return encoders[type(config)], config, []


def _pretrained(cls: Any, name: str, config: Any) -> tuple[Any, list[str]]:
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
    return module, missing


def _inputs(
    name: str, module: Any, config: Any, options: Options, takes: set[str]
) -> tuple[Callable[[int, int], dict[str, Tensor]], list[str]]:
    main = module.main_input_name
    if main == "pixel_values":
        size = options.image_size or getattr(config, "image_size", None) or IMAGE_SIZE
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return pictures(getattr(config, "num_channels", 3), height, width), []
    if main == "input_ids":
        longest = getattr(config, "max_position_embeddings", None) or SEQUENCE_LENGTH
        length = options.sequence_length or min(SEQUENCE_LENGTH, longest)
        if length > longest:
            raise ExportError(f"sequence_length is {length}; {name} has positions for {longest}")
        note = (
            []
            if options.sequence_length
            else [f"sequence length fixed at {length}; --sequence-length sets it"]
        )
        return _words(config, length, "attention_mask" in takes), note
    raise ExportError(
        f"{type(module).__name__} takes {main}; export knows pixel_values and input_ids: use "
        "FILE.py:FUNCTION and return (module, inputs)"
    )


def _words(config: Any, length: int, masked: bool) -> Callable[[int, int], dict[str, Tensor]]:
    """Draw `input_ids` and `attention_mask` [B, N]; every row but each third ends in padding."""
    vocabulary, padding = config.vocab_size, getattr(config, "pad_token_id", None)

    def draw(batch: int, seed: int) -> dict[str, Tensor]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(0, vocabulary, (batch, length), generator=generator)
        if padding is not None:
            words[words == padding] = (padding + 1) % vocabulary
        if not masked:
            return {"input_ids": words}
        mask = torch.ones_like(words)
        for row in range(batch):
            mask[row, length - (row % 3) * (length // 4) :] = 0
        return {"input_ids": words, "attention_mask": mask}

    return draw


def _resized(config: Any, options: Options) -> bool:
    return options.image_size is not None and getattr(config, "image_size", None) != options.image_size


def _shortest(error: BaseException) -> str:
    """First line of the error itself: transformers explains itself better than the cause below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else first_line(error)


SOURCE = Source(
    form="hf:NAME_OR_DIR",
    pattern=r"hf:(.+)",
    packages=(("torch", "export"), ("transformers", "export")),
    load=load,
)
