"""What two forms choose, compared: by hand on small scores, and on a model and its half form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenrt
from tests import zoo
from tokenrt.passes.checking import choices
from tokenrt.passes.checking.choices import PREFIX, Site
from tokenrt.passes.graph.model import load, save

SELECT = Site("TokenSelect", keep=3, protect=1, sources=())
MATCH = Site("TokenMatch", keep=4, protect=0, sources=(1, 3, 5))


def told(*sites: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """Outputs of a run of one sample: score, who was chosen and, of a matching, whom they join."""
    names = {2: ("score", "index"), 3: ("value", "source", "destination")}
    return {
        f"{PREFIX}{number}_{name}": np.array([value])
        for number, site in enumerate(sites)
        for name, value in zip(names[len(site)], site, strict=True)
    }


def test_equal_choices_are_alike_whatever_their_order() -> None:
    one, other = ([9.0, 1, 2, 3, 4], [0, 3, 4]), ([-9.0, 1, 2, 3, 4], [0, 4, 3])
    found = choices.compared([SELECT], [told(one)], [told(other)])
    assert (found.alike, found.tokens, found.margin, found.near_ties) == ((0,), 0, 0.0, True)
    assert str(found) == "1 of 1 samples choose alike at all 1 sites"


def test_a_near_tie_is_told_from_another_choice() -> None:
    # Tokens 2 and 3 trade places; the protected score, far below, is no cut.
    one = ([-99.0, 1, 2.0, 2.1, 4], [0, 3, 4])
    near = choices.compared([SELECT], [told(one)], [told(([-99.0, 1, 2.1, 2.0, 4], [0, 2, 4]))])
    assert (near.tokens, near.near_ties) == (2, True)
    assert near.margin == pytest.approx(0.1 / np.std([1, 2.0, 2.1, 4]))
    far = choices.compared([SELECT], [told(one)], [told(([-99.0, 1, 2.0, 2.1, 4], [0, 1, 4]))])
    assert (far.tokens, far.near_ties) == (2, False)
    assert "no ties" in str(far)


def test_sources_are_looked_up_and_a_token_that_joins_another_counts() -> None:
    one = ([0.1, 0.9, 0.8], [3, 5], [2, 3])
    found = choices.compared([MATCH], [told(one)], [told(([0.1, 0.8, 0.9], [5, 3], [3, 2]))])
    assert (len(found.alike), found.tokens, found.joined) == (1, 0, 0)
    found = choices.compared([MATCH], [told(one)], [told(([0.1, 0.9, 0.8], [3, 5], [2, 2]))])
    assert (len(found.alike), found.tokens, found.joined, found.near_ties) == (0, 0, 1, True)


def test_a_sample_that_chose_otherwise_is_not_compared_further() -> None:
    apart = ([0.0, 1, 2.0, 2.1, 4], [0, 3, 4]), ([0.0, 1, 2.1, 2.0, 4], [0, 2, 4])
    same = ([0.0, 1, 2, 3, 4], [0, 3, 4])
    found = choices.compared(
        [SELECT, SELECT],
        [told(apart[0], same), told(same, same)],
        [told(apart[1], apart[1]), told(same, same)],
    )
    assert (found.samples, found.compared, found.alike, found.tokens) == (2, 3, (1,), 2)


def test_scores_that_are_not_finite_are_as_low_or_high_as_the_rest() -> None:
    one = ([0.0, np.nan, -np.inf, 3, np.inf], [0, 3, 4])
    assert choices.compared([SELECT], [told(one)], [told(one)]).margin == 0.0
    assert SELECT.rated(np.array(one[0]))[0].tolist() == [3, 3, 3, 3]


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reduced") / "r.onnx"
    tokenrt.reduce(zoo.onnx("timm_vit"), method="tome", budget=tokenrt.Budget.remove(2), output=path)
    return path


def test_check_tells_the_choices_of_a_half_form(reduced: Path, tmp_path: Path) -> None:
    half = tokenrt.convert(reduced, precision="fp16", keep_io=True, check=False, output=tmp_path / "h.onnx")
    report = tokenrt.check(reduced, half.output, samples=2)
    assert report.choices is not None
    assert (report.choices.sites, report.choices.samples, report.choices.near_ties) == (4, 4, True)
    assert report.as_dict()["choices"]["alike"] == len(report.choices.alike)
    assert {drift.output for drift in report.outputs} == {
        str(value.name) for value in load(reduced).graph.outputs
    }


def test_models_that_do_not_choose_alike_by_design_are_not_compared(reduced: Path, tmp_path: Path) -> None:
    assert tokenrt.check(zoo.onnx("timm_vit"), reduced, samples=1).choices is None
    other = tokenrt.reduce(zoo.onnx("timm_vit"), method="tome", budget=tokenrt.Budget.remove(1)).model
    assert tokenrt.check(reduced, save(other, tmp_path / "o.onnx"), samples=1).choices is None
