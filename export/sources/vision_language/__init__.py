"""Vision parts of vision-language models: tower and projector in one graph, `pixel_values` to `image_features`.

A family is an entry in the table of its file, by the model type of its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenrt.errors import ExportError

if TYPE_CHECKING:
    from tokenrt.export.options import Options
    from tokenrt.export.sources.contract import Loaded
    from tokenrt.export.sources.vision_language.contract import Family


def families() -> Mapping[str, Family]:
    """Model type -> how its vision part is called."""
    from tokenrt.export.sources.vision_language import crops, llava, patches, towers

    return {**towers.FAMILIES, **llava.FAMILIES, **crops.FAMILIES, **patches.FAMILIES}


def vision(name: str, config: Any, options: Options) -> Loaded:
    """The vision part of the model `config` is of. Raises: ExportError, for an unknown family with the known ones."""
    import transformers

    from tokenrt.export.sources.checkpoint import described, instance
    from tokenrt.export.sources.contract import Loaded, pictures
    from tokenrt.export.sources.vision_language.contract import Part

    family = _family(name, config, options)
    _without_language(config, options)
    if family.sized and options.image_size is not None:
        _resize(name, config, options)
    cls: Any = transformers.MODEL_MAPPING[type(config)]
    model, lacks = instance(cls, name, config, options)
    model.language_model = model.text_model = None
    drawn = _draw_zeros(model) if options.random_weights else []
    found = family.open(model.eval(), options)
    if not found.batched and options.batch not in (None, 1):
        raise ExportError(
            f"batch is {options.batch}; {config.model_type} takes one picture or clip a call, as {list(found.shape)}"
        )
    return Loaded(
        module=Part(model, found.read),
        draw=pictures(*found.shape, batched=found.batched),
        model=f"{cls.__name__}, vision part",
        weights=described(options),
        batched=None if found.batched else frozenset(),
        notes=(*found.notes, *lacks, *drawn),
    )


def _family(name: str, config: Any, options: Options) -> Family:
    known = families()
    kind = config.model_type
    if kind not in known:
        raise ExportError(
            f"{name} is of the model type {kind}, whose vision part is not known; known are {', '.join(sorted(known))}. "
            "Export it through FILE.py:FUNCTION, or its plain tower without --part"
        )
    family = known[kind]
    if options.image_grid is not None and "image_grid" not in family.takes:
        raise ExportError(
            f"image_grid is {options.image_grid}; {kind} takes one picture at a time and has no grid to choose"
        )
    if options.keep_layer is not None and "keep_layer" not in family.takes:
        raise ExportError(
            f"keep_layer is {options.keep_layer}; the features of {kind} read every layer of the tower, so all are in the "
            "file anyway"
        )
    return family


def _without_language(config: Any, options: Options) -> None:
    """Leave a language model without layers, which is neither made nor read; checkpoints keep the embeddings."""
    text = config.text_config
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None):
        text.layer_types = []
    if options.random_weights:
        text.vocab_size, text.pad_token_id = 1, None


def _resize(name: str, config: Any, options: Options) -> None:
    from tokenrt.export.sources.vision_language.contract import side

    tower, wanted = config.vision_config, options.image_size
    if options.random_weights:
        tower.image_size = [wanted, wanted] if isinstance(tower.image_size, list | tuple) else wanted
    elif side(tower.image_size) != wanted:
        raise ExportError(
            f"image_size is {wanted}; the tower and projector of {name} are for pictures of {side(tower.image_size)} x "
            f"{side(tower.image_size)}"
        )


def _draw_zeros(model: Any) -> list[str]:
    """Give matrices that are zero as constructed random values: a comparison of zeros with zeros tells nothing."""
    import torch

    zeros = [name for name, weight in model.named_parameters() if weight.ndim > 1 and not weight.any()]
    with torch.no_grad():
        for name in zeros:
            model.get_parameter(name).normal_(std=0.02)
    return [f"zero as constructed, drawn at random: {', '.join(zeros)}"] if zeros else []
