"""Hugging Face models: a hub name, a local folder, a config.json, or the name of a model type."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenrt.errors import ExportError
from tokenrt.export.sources.checkpoint import configuration, described, instance
from tokenrt.export.sources.contract import IMAGE_SIZE, Loaded, Source, pictures

if TYPE_CHECKING:
    from torch import Tensor

    from tokenrt.export.options import Options

SEQUENCE_LENGTH = 128
"""Tokens of a text input where none is asked for: token reduction needs a fixed count."""


def load(parts: tuple[str, ...], options: Options) -> Loaded:
    """Make the class the configuration names, the plain encoder where it names none.

    Of a model with a vision tower (CLIP, SigLIP) the tower is exported, with its projector where the vision part is
    asked for.
    """
    (name,) = parts
    config = configuration(name, options)
    if options.part == "vision":
        from tokenrt.export.sources.vision_language import vision

        return vision(name, config, options)
    cls, config, notes = _class(name, config)
    if options.image_size is not None and options.random_weights and hasattr(config, "image_size"):
        config.image_size = options.image_size
    if getattr(config, "is_encoder_decoder", False):
        raise ExportError(f"{name} is an encoder and a decoder; export one of them through FILE.py:FUNCTION")
    module, lacks = instance(cls, name, config, options)
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
        weights=described(options),
        by_name=True,
        arguments=arguments,
        result="last_hidden_state",
        notes=(*notes, *lacks, *note),
    )


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


SOURCE = Source(
    form="hf:NAME_OR_DIR",
    pattern=r"hf:(.+)",
    packages=(("torch", "export"), ("transformers", "export")),
    load=load,
    parts=("vision",),
)
