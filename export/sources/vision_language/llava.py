"""LLaVA-1.5: a layer of a CLIP or SigLIP tower through a projector, and what its relatives share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenrt.errors import ExportError
from tokenrt.export.sources.vision_language.contract import FEATURES, Family, Vision, raster
from tokenrt.export.sources.vision_language.towers import per_side, shape

if TYPE_CHECKING:
    from torch import Tensor

    from tokenrt.export.options import Options

TOWERS = ("clip_vision_model", "siglip_vision_model")


def check(model: Any, options: Options) -> None:
    """Refuse towers called in another way, and a layer to keep that is none or is kept anyway. Raises: ExportError."""
    config = model.config
    kind, layers, wanted = (
        config.vision_config.model_type,
        config.vision_config.num_hidden_layers,
        options.keep_layer,
    )
    if kind not in TOWERS:
        raise ExportError(
            f"the tower of this {config.model_type} is of the model type {kind}; known are {' and '.join(TOWERS)}"
        )
    if wanted is None:
        return
    if not -layers <= wanted < layers:
        raise ExportError(f"keep_layer is {wanted}; the tower has layers 0 to {layers - 1}")
    if wanted % layers < (read := max(index % (layers + 1) for index in _read(config))):
        raise ExportError(
            f"keep_layer is {wanted}; the features read layers 0 to {read - 1} of the tower, so it is in the file anyway"
        )


def projected(model: Any, pixels: Tensor) -> Tensor:
    """What the projector makes of the layers it reads, [B,N,C], without the class token where the model drops it."""
    import torch

    config, hidden = model.config, model.vision_tower(pixels, output_hidden_states=True).hidden_states
    first = _dropped(config)
    chosen = [hidden[index][:, first:] for index in _read(config)]
    features: Tensor = model.multi_modal_projector(torch.cat(chosen, -1) if len(chosen) > 1 else chosen[0])
    return features


def keep(model: Any, options: Options) -> Mapping[str, Tensor]:
    """The stream behind the attention of the layer to keep, set by every call of the tower.

    As an output it keeps that attention a block of the graph, whose queries and keys can be read; the layer's MLP goes.
    """
    found: dict[str, Tensor] = {}
    if options.keep_layer is not None:
        layers = model.vision_tower.encoder.layers
        name = f"attended_{options.keep_layer % len(layers)}"
        norm = layers[options.keep_layer].layer_norm2
        norm.register_forward_pre_hook(lambda _, given: found.update({name: given[0]}))
    return found


def _read(config: Any) -> Sequence[int]:
    layers = config.vision_feature_layer
    return [layers] if isinstance(layers, int) else list(layers)


def _dropped(config: Any) -> int:
    """Leading tokens that the projector does not get: the class token of a CLIP tower."""
    return int(config.vision_feature_select_strategy == "default")


def _open(model: Any, options: Options) -> Vision:
    check(model, options)
    kept = keep(model, options)

    def read(pixels: Tensor) -> dict[str, Tensor]:
        return {FEATURES: projected(model, pixels), **kept}

    leads = int(model.config.vision_config.model_type == "clip_vision_model") - _dropped(model.config)
    whole = raster(per_side(model))
    notes = {
        0: whole,
        1: f"{whole}, behind a row of the class token",
        -1: f"{whole}, but for the first patch",
    }
    return Vision(read, shape(model), notes=(notes[leads],))


FAMILIES: Mapping[str, Family] = {"llava": Family(_open, takes=frozenset({"keep_layer"}))}
