"""Vision parts: the exported file computes what the whole model hands to its language model, in the order it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

import tokenrt
from tests.export.helpers import vision_language as small
from tests.passes.helpers.running import session
from tokenrt.errors import ExportError
from tokenrt.export import export
from tokenrt.export.options import Options
from tokenrt.export.quiet import quiet
from tokenrt.export.sources.contract import Loaded
from tokenrt.export.sources.vision_language import families, vision
from tokenrt.passes.inspect import inspect
from tokenrt.perf.bench.towers.families import CONFIGURATIONS, configuration

Official = Callable[[Any, Tensor], dict[str, Tensor]]


def loaded(kind: str, **options: Any) -> Loaded:
    """What the exporter of the file of the same options makes of the seed."""
    torch.manual_seed(0)
    with quiet():
        return vision(kind, configuration(kind), Options(random_weights=True, part="vision", **options))


def features(result: Tensor) -> dict[str, Tensor]:
    return {"image_features": result}


def picture(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    found = model.get_image_features(pixels).pooler_output
    return features(torch.stack(found) if isinstance(found, list) else found)


def kept(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    """The stream behind the attention of the last layer, which no feature reads."""
    stream = model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    layer = model.vision_tower.encoder.layers[-1]
    mixed, _ = layer.self_attn(hidden_states=layer.layer_norm1(stream), attention_mask=None)
    return {**picture(model, pixels), "attended_2": stream + mixed}


def crops(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    return features(model.get_image_features(pixels[None], torch.tensor([[64, 64]])).pooler_output[0][None])


def video(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    return features(model.get_video_features(pixels[None]).pooler_output)


def idefics(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    (found,) = model.get_image_features(pixels[None]).pooler_output
    return features(found.reshape(len(pixels), -1, found.shape[-1]))


def stream(*grid: int) -> Official:
    def official(model: Any, patches: Tensor) -> dict[str, Tensor]:
        model.visual.config._attn_implementation = "eager"
        found = model.get_image_features(patches, torch.tensor([grid]))
        deep = getattr(found, "deepstack_features", ())
        return {
            **features(found.pooler_output[0]),
            **{f"deepstack_{n}": each[0] for n, each in enumerate(deep)},
        }

    return official


OFFICIAL: Mapping[str, Official] = {
    **dict.fromkeys(small.FILES, picture),
    **dict.fromkeys(("idefics3", "smolvlm"), idefics),
    **dict.fromkeys(("llava_next", "llava_onevision"), crops),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), stream(1, 8, 8)),
    "llava_kept": kept,
    "llava_onevision_video": video,
    "qwen2_vl_video": stream(2, 4, 4),
}


def agrees(path: Path, name: str) -> None:
    kind, options = small.FILES[name]
    made = loaded(kind, **options)
    pixels = made.draw(2, 5)["pixel_values"]
    with torch.no_grad(), quiet():
        want = OFFICIAL[name](made.module.eval().model, pixels)
    running = session(path)
    assert [value.name for value in running.get_outputs()] == list(want)
    for got, wanted in zip(running.run(None, {"pixel_values": pixels.numpy()}), want.values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), wanted, atol=1e-5, rtol=1e-4)
        assert wanted.std() > 1e-4


@pytest.mark.parametrize("name", small.FILES)
def test_the_file_computes_what_the_language_model_gets(name: str) -> None:
    agrees(small.onnx(name, 17, "torchscript"), name)


@pytest.mark.parametrize(("name", "opset"), [("llava_next", 20), ("qwen2_5_vl", 23)])
def test_dynamo(name: str, opset: int) -> None:
    path = small.onnx(name, opset)
    agrees(path, name)
    assert sum(node.op_type == "Attention" for node in ir.load(path).graph) == (3 if opset == 23 else 0)


def test_a_mask_is_written_once_for_all_windows() -> None:
    weights = ir.load(small.onnx("qwen2_5_vl", 23)).graph.initializers.values()
    assert sum(list(value.shape or ()) == [1, 1, 64, 64] for value in weights) == 1


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_vl_video"])
def test_half_precision(name: str) -> None:
    graph = ir.load(small.onnx(name, 17, "torchscript", "fp16")).graph
    assert {value.dtype for value in (*graph.inputs, *graph.outputs)} == {ir.DataType.FLOAT16}


@pytest.mark.parametrize(
    ("name", "blocks", "tokens"),
    [
        ("llava", 2, 17),
        ("llava_kept", 3, 17),
        ("llava_next", 2, 17),
        ("qwen2_vl", 3, 64),
        ("qwen3_vl", 3, 64),
    ],
)
def test_the_analysis_finds_the_blocks(name: str, blocks: int, tokens: int) -> None:
    found = inspect(small.onnx(name, 17, "torchscript"))
    assert (len(found.blocks), found.tokens) == (blocks, tokens)


@pytest.mark.parametrize("layer", [-1, -2])
def test_a_method_reads_the_layer_that_is_kept(layer: int) -> None:
    reduced = tokenrt.reduce(
        small.onnx("llava_kept", 17, "torchscript"),
        method="fastervlm",
        budget=tokenrt.Budget.keep(0.5),
        site="output:image_features",
        tap_layer=layer,
    )
    made = loaded("llava", keep_layer=-1)
    model, pixels = made.module.eval().model, made.draw(2, 5)["pixel_values"]
    (index,) = session(reduced.model).run(["kept_index"], {"pixel_values": pixels.numpy()})
    model.vision_tower.config._attn_implementation = "eager"
    with torch.no_grad(), quiet():
        attention = model.vision_tower(pixels, output_attentions=True).attentions[layer]
    best = attention.mean(1)[:, 0, 1:].topk(8).indices.sort().values
    assert torch.equal(torch.from_numpy(index), best)
    assert [value.name for value in reduced.model.graph.outputs] == ["image_features", "kept_index"]
    assert reduced.report.dropped == ("attended_2",)


def test_an_output_goes_only_where_export_says_that_it_added_it() -> None:
    model = ir.load(small.onnx("llava_kept", 17, "torchscript"))
    model.metadata_props.clear()
    reduced = tokenrt.reduce(
        model, method="fastervlm", budget=tokenrt.Budget.keep(0.5), site="output:image_features"
    )
    assert "attended_2" in {value.name for value in reduced.model.graph.outputs}
    assert reduced.report.dropped == ()


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("size", [(64, 40), (20, 90), (64, 64), (30, 30)])
def test_crops_of_any_picture_are_stitched_as_the_model_does(
    kind: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenrt.export.sources.vision_language import crops as own

    monkeypatch.setattr(own, "_picture", lambda config, options: size)
    made = loaded(kind)
    pixels = made.draw(1, 3)["pixel_values"]
    with torch.no_grad(), quiet():
        want = made.module.model.get_image_features(pixels[None], torch.tensor([size])).pooler_output[0]
        assert torch.equal(made.module(pixels)["image_features"][0], want)


def test_a_long_sequence_is_shrunk_as_the_model_does() -> None:
    config = configuration("llava_onevision", vision_aspect_ratio="anyres_max_2")
    with torch.no_grad(), quiet():
        made = vision("m", config, Options(random_weights=True, part="vision"))
        pixels = made.draw(1, 3)["pixel_values"]
        assert torch.equal(
            made.module(pixels)["image_features"], crops(made.module.model, pixels)["image_features"]
        )
    assert "then 5 rows of 5 tokens" in made.notes[1]


def test_notes_say_what_was_fixed_and_how_the_rows_lie() -> None:
    assert loaded("llava").notes == ("order: 4 x 4 rows of image_features in raster order, each of a patch",)
    assert loaded("gemma3").notes == (
        "order: 2 x 2 rows of image_features in raster order, each of 2 x 2 patches",
        "zero as constructed, drawn at random: multi_modal_projector.mm_input_projection_weight",
    )
    assert loaded("llava_next").notes[1].endswith("rows 24, 33, ...")
    assert loaded("llava_onevision", image_grid="4x1x1").notes == (
        "fixed: 4 frames of 2 x 2 tokens in order, then one newline; one clip a call",
    )
    assert loaded("qwen2_vl", image_size=64).notes[0].startswith("fixed: grid 1x8x8, ")
    assert loaded("idefics3").notes[0].startswith("fixed: all 4 x 4 patches of a picture are there")


def test_weights_of_a_whole_model_are_read(tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(3)
    with quiet():
        whole = LlavaForConditionalGeneration(configuration("llava"))
        whole.save_pretrained(tmp_path / "llava")
    report = export(
        f"hf:{tmp_path / 'llava'}", tmp_path / "m.onnx", part="vision", exporter="torchscript", opset=17
    )
    assert report.weights == "pretrained"
    assert report.notes == ("order: 4 x 4 rows of image_features in raster order, each of a patch",)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    (got,) = session(tmp_path / "m.onnx").run(None, {"pixel_values": pixels.numpy()})
    with torch.no_grad(), quiet():
        want = picture(whole.model.eval(), pixels)["image_features"]
    torch.testing.assert_close(torch.from_numpy(got), want, atol=1e-5, rtol=1e-4)


def test_the_side_of_a_tower_with_random_weights_is_free() -> None:
    assert loaded("internvl", image_size=64).draw(1, 0)["pixel_values"].shape == (1, 3, 64, 64)


def test_every_known_family_is_tested() -> None:
    assert set(families()) == set(CONFIGURATIONS)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("llava", {"image_grid": "2x2"}, "image_grid is 2x2; llava takes one picture at a time"),
        ("paligemma", {"keep_layer": -1}, "the features of paligemma read every layer of the tower"),
        ("llava", {"keep_layer": 3}, "keep_layer is 3; the tower has layers 0 to 2"),
        (
            "llava",
            {"keep_layer": 1},
            "keep_layer is 1; the features read layers 0 to 1 of the tower, so it is in",
        ),
        ("llava_onevision", {"keep_layer": -1}, "the features read layers 0 to 2 of the tower"),
        (
            "llava_next",
            {"image_grid": "3x3"},
            "image_grid is 3x3; the crops of this llava_next make a grid of 2x1, 1x2, 2x2, 1x3",
        ),
        ("llava_onevision", {"image_grid": "4x2x2"}, "frames of a clip are not cut into crops: write 4x1x1"),
        (
            "llava_next",
            {"batch": 2},
            "batch is 2; llava_next takes one picture or clip a call, as [5, 3, 32, 32]",
        ),
        ("qwen2_vl", {"image_grid": "3x4"}, "rows and columns must be multiples of 2"),
        ("qwen2_vl", {"image_size": 60}, "it must be a multiple of 16: 64 is near"),
    ],
)
def test_what_a_family_cannot_do_is_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError) as caught:
        loaded(kind, **options)
    assert message in str(caught.value)


def test_a_tower_of_another_kind_is_refused() -> None:
    tower = {"model_type": "pixtral", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = configuration(
        "llava", vision_config={**tower, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    )
    with (
        quiet(),
        pytest.raises(ExportError, match="tower of this llava is of the model type pixtral; known are clip"),
    ):
        vision("m", config, Options(random_weights=True, part="vision"))


def test_the_size_of_trained_pictures_is_not_changed() -> None:
    with (
        quiet(),
        pytest.raises(
            ExportError, match="image_size is 64; the tower and projector of m are for pictures of 32"
        ),
    ):
        vision("m", configuration("llava"), Options(part="vision", image_size=64))


def test_unknown_families_and_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match="of the model type vit, whose vision part is not known; known are gemma3, "
    ):
        export("hf:vit", tmp_path / "m.onnx", part="vision", random_weights=True)
    with pytest.raises(
        ExportError, match="timm:test_vit has no vision part to choose; --part is for Hugging Face"
    ):
        export("timm:test_vit", tmp_path / "m.onnx", part="vision")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "audio"}, "part 'audio' is unknown; export knows vision"),
        ({"image_grid": "2x2"}, "image_grid goes with the vision part of a model: add --part vision"),
        ({"keep_layer": -1}, "keep_layer goes with the vision part of a model: add --part vision"),
        ({"part": "vision", "image_grid": "2"}, "image_grid '2' is no grid: write ROWSxCOLUMNS or FRAMESx"),
        ({"part": "vision", "image_grid": "0x2"}, "image_grid '0x2' is no grid"),
    ],
)
def test_options_of_parts_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError) as caught:
        Options(**options)
    assert str(caught.value).startswith(message)


def test_options_of_parts_are_in_the_metadata() -> None:
    options = Options(part="vision", image_grid="4x8x8", keep_layer=-1)
    assert options.grid == (4, 8, 8)
    assert options.spec().endswith("part=vision,image_grid=4x8x8,keep_layer=-1}")
