"""The benches of text and speech: what they measure, what they read, and the page they write; no wheel is needed."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.perf.bench.encoders import speech, text, texts, voice, wheels, whisper
from tokenrt.perf.bench.encoders.findings import Findings, Result, exam
from tokenrt.perf.bench.encoders.reasons import OF_SPEECH, OF_TEXT
from tokenrt.perf.bench.encoders.wheels import Wheel


def test_there_are_two_hundred_sentences_ten_of_a_subject() -> None:
    lines = texts.sentences()
    assert len(lines) == len({*lines}) == 200
    assert voice.spread(lines)[:2] == [lines[0], lines[10]]
    assert sorted(voice.spread(lines)) == sorted(lines)


def test_the_same_embeddings_agree_in_everything() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 8))
    found = text.measures(3 * rows, rows)
    np.testing.assert_allclose(found["cosine"], 1)
    assert (found["neighbours"] == 1).all()


def test_neighbours_are_counted_sentence_by_sentence() -> None:
    """Two clusters of eleven; a sentence that goes over has none of its neighbours left, and leaves ten places to others."""
    rows = np.repeat(np.eye(2), 11, axis=0) + 0.01 * np.random.default_rng(1).standard_normal((22, 2))
    moved = rows.copy()
    moved[0] = rows[11]
    found = text.measures(moved, rows)
    assert found["neighbours"][0] == 0
    assert (found["neighbours"][1:11] == 0.9).all()
    assert found["cosine"][0] < 0.1


def test_errors_are_those_of_words() -> None:
    assert whisper.errors("The dough, rests!", "the dough rests") == (0, 3)
    assert whisper.errors("one two three four", "one three five four six") == (3, 4)
    assert whisper.errors("one two", "") == (2, 2)


def test_a_sound_keeps_its_tone_at_another_rate() -> None:
    rate, tone = 22050, 440
    wave = np.sin(2 * np.pi * tone * np.arange(rate) / rate).astype(np.float32)
    found = voice.resampled(wave, rate)
    wanted = np.sin(2 * np.pi * tone * np.arange(whisper.RATE) / whisper.RATE)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def written(path: Path, tensors: dict[str, Any], version: int = whisper.VERSION) -> Path:
    """A file in CTranslate2's format."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", version), text("WhisperSpec"), struct.pack("<II", 3, len(tensors))]
    for name, value in tensors.items():
        kind = next(key for key, own in whisper.KINDS.items() if own == value.dtype)
        axes = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        parts += [text(name), axes, struct.pack("<BI", kind, value.nbytes), value.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def test_weights_are_read_and_parted_under_their_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    given = {
        "encoder/layer_1/self_attention/linear_0/weight": rng.standard_normal((12, 4)).astype(np.float16),
        "encoder/layer_1/self_attention/linear_0/bias": rng.standard_normal(12).astype(np.float16),
        "decoder/layer_0/attention/linear_1/weight": rng.standard_normal((8, 4)).astype(np.float16),
        "decoder/layer_0/ffn/layer_norm/gamma": rng.standard_normal(4).astype(np.float32),
        "decoder/num_heads": np.array(6, np.int16),
    }
    read = whisper.tensors(written(tmp_path / "model.bin", given))
    assert {*read} == {*given}
    made, prefix = whisper.renamed(read), "model.encoder.layers.1.self_attn"
    query = given["encoder/layer_1/self_attention/linear_0/weight"][:4]
    np.testing.assert_array_equal(made[f"{prefix}.q_proj.weight"], query)
    assert f"{prefix}.k_proj.bias" not in made
    second = given["decoder/layer_0/attention/linear_1/weight"][4:]
    np.testing.assert_array_equal(made["model.decoder.layers.0.encoder_attn.v_proj.weight"], second)
    assert "model.decoder.layers.0.final_layer_norm.weight" in made
    with pytest.raises(TokenrtError, match="version 5 of CTranslate2's format, not 6"):
        whisper.tensors(written(tmp_path / "old.bin", given, 5))


def test_a_wheel_gives_its_files_and_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path))
    folder = tmp_path / "bench" / "wheels" / "some-1.0"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "some-1.0-py3-none-any.whl", "w") as packed:
        packed.writestr("some/data.bin", b"here")
    wheel = Wheel("some", "1.0")
    assert wheel.file("some/data.bin").read_bytes() == b"here"
    assert (wheel.unpacked() / "some" / "data.bin").is_file()
    with pytest.raises(TokenrtError, match=r"some 1\.0 does not hold some/other"):
        wheel.file("some/other")
    monkeypatch.setattr(wheels.sys, "executable", "/bin/false")
    with pytest.raises(
        TokenrtError, match=r"cannot download the wheel other==2\.0, whose files this benchmark reads"
    ):
        Wheel("other", "2.0").file("x")


def test_the_page_says_who_is_surely_worse_and_what_was_left_out() -> None:
    rng = np.random.default_rng(3)

    def each(level: float, draws: int = 1) -> dict[str, Any]:
        return {key: level + 0.01 * rng.random((draws, 60)) for key in text.MEASURES}

    levels = {"tome": 0.9, "topk": 0.7, "random": 0.8}
    found = [
        Result("small", name, 0.5, each(level, 1 + 4 * (name == "random"))) for name, level in levels.items()
    ]
    found += [Result("small", "atc", 0.5, {}, "too many")]
    about, away = {"small": "An encoder."}, {"mrt5": "weights"}
    page = Findings("Text", ["About."], [0.5], text.MEASURES, about, found, left_out=away)
    assert [*page.losers("small", "cosine")] == ["topk"]
    written = page.page({"date": "today", "processor": "one", "processors": 1, "versions": {}})
    assert "| `tome` | 0.90" in written
    assert "↑" in next(line for line in written.splitlines() if line.startswith("| `tome`"))
    assert "Surely worse than `random` at some share: `topk`." in written
    assert "No reason was found and tested for `topk`." in written
    assert "- `mrt5`: weights\n- `atc`: too many" in written
    told = page.as_dict()["results"][0]
    assert told["cosine_better_than_random"][0] > 0


def test_reasons_and_methods_are_of_methods_that_are_measured() -> None:
    named = [
        {name for experiment in each for name in experiment.names}
        for each in (OF_TEXT, sum(OF_SPEECH.values(), ()))
    ]
    assert named[0] <= {name for name in methods.at_blocks() if not text.unfit(name)}
    assert named[1] <= {*speech.METHODS}
    assert text.unfit("mrt5").startswith("needs trained weights")
    assert text.unfit("sctd").startswith("reads importance")
    assert "rows and columns" in text.unfit("tomesd")
    assert exam("a", "b") == "a, b"
