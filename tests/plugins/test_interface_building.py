"""Each plugin as a builder sees it, with its kernels on the CPU: fields, copies, shapes, formats, workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.cases import alternate
from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers import built
from tests.plugins.helpers.interface import (
    CONTRACTS,
    KINDS,
    inputs_of,
    made,
    needs_compiler,
    types_of,
)
from tests.plugins.helpers.node import (
    BFLOAT16,
    CHW4,
    FLOAT,
    HALF,
    INT8,
    INT32,
    INT64,
    RUNTIME,
    Node,
    told,
)

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def path() -> Path:
    return built.host_library()


# Fields ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [0, RUNTIME], ids=["build", "runtime"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONTRACTS)
def test_fields_travel_through_an_engine(name: str, kind: str, phase: int, path: Path) -> None:
    attributes = inputs_of(name, kind)[1]
    node = Node.create(path, name, attributes, phase)
    assert node is not None, told()
    again, copy = node.again(), node.clone()
    assert again is not None
    assert copy is not None
    assert node.fields == again.fields == copy.fields
    assert node.texts == again.texts == copy.texts
    for key, value in attributes.items():
        numbers = " ".join(
            f"{item:.6f}" if isinstance(item, float) else str(item) for item in np.ravel(value)
        )
        written = f"{key} {1 if isinstance(value, float) else 5}: {numbers};"
        assert (written in node.fields) == bool(numbers)  # an empty list is not written at all
    told_before = node.fields
    for one in (node, copy):
        one.close()
    assert again.fields == told_before  # lives without the one it was made from
    again.close()


@pytest.mark.parametrize("name", [name for name in CONTRACTS if CONTRACTS[name].fields])
def test_a_bad_field_is_refused_by_name(name: str, path: Path) -> None:
    good = inputs_of(name)[1]
    for field in CONTRACTS[name].fields:
        wide = [np.int64(2**31 + 5)]
        bad: list[tuple[Any, str]] = [(None, "is missing")] * (field.kind != "list") + [
            (np.array([1.5], np.float64), "must be "),
            (np.array([1], np.int8), "must be "),
        ]
        if field.kind == "float":
            bad += [
                (float("nan"), "finite"),
                (np.int32(1), "must be float32"),
                ([0.5, 0.5], "takes one number"),
            ]
        else:
            bad += [
                (np.array([field.most + 1], np.int32), f"must be {field.least} to {field.most}"),
                (np.array([field.least - 1], np.int32), f"must be {field.least} to {field.most}"),
                (np.array(wide), f"must be {field.least} to {field.most}"),
                (np.float32(1), "must be int32 or int64"),
            ]
        if field.kind in ("int", "size"):
            bad += [
                (np.array([1, 1], np.int32), "takes one number"),
                (np.array([], np.int32), "takes one number"),
            ]
        for value, reason in bad:
            given = {key: item for key, item in good.items() if key != field.name}
            if value is not None:
                given[field.name] = value
            assert Node.create(path, name, given) is None
            said = told()
            assert f"field '{field.name}'" in said
            assert reason in said
            assert f"{name} node 'node'" in said


def test_unknown_and_repeated_fields_are_refused(path: Path) -> None:
    good = inputs_of("TokenSelect")[1]
    assert Node.create(path, "TokenSelect", {**good, "kep": [3]}) is None
    assert "unknown field 'kep'" in told()
    assert Node.listed(path, "TokenSelect", [*good.items(), ("keep", [3])]) is None
    assert "field 'keep' is given twice" in told()
    assert Node.create(path, "TokenRestore", {"keep": [3]}) is None
    assert "unknown field 'keep'" in told()


def test_an_empty_list_and_a_missing_one_are_the_same(path: Path) -> None:
    """Models without a class token have no other positions; nothing says that an engine keeps a field without data."""
    fields = alternate(8, 0, 3, 0)
    assert fields["others"] == []
    rest = {key: value for key, value in fields.items() if key != "others"}
    given, left_out = Node.create(path, "TokenMatch", fields), Node.create(path, "TokenMatch", rest)
    assert given is not None, told()
    assert left_out is not None, told()
    assert "others" not in given.fields
    assert given.fields == left_out.fields
    assert given.texts == left_out.texts
    again = given.again()
    assert again is not None, told()
    assert again.texts == given.texts


def test_a_list_that_must_not_be_empty_is_missed(path: Path) -> None:
    fields = {key: value for key, value in alternate(8, 0, 3, 0).items() if key != "destinations"}
    assert Node.create(path, "TokenMatch", {**fields, "sources": list(range(8))}) is None
    assert "field 'destinations' is empty" in told()
    assert Node.create(path, "TokenGroupSelect", {"keep": [4], "protect": [1], "quotas": [1, 2]}) is None
    assert "'lengths' names 0 groups, it must be 1 to 1024" in told()


def test_64_bit_integers_are_taken(path: Path) -> None:
    good = inputs_of("TokenMatch")[1]
    node = Node.create(path, "TokenMatch", {key: np.array(value, np.int64) for key, value in good.items()})
    assert node is not None
    assert node.fields == made(path, "TokenMatch").fields


MATCH = alternate(8, 0, 3, 0)
GREEDY = {"keep": [3], "protect": [0], "order": 0, "objective": 0, "power": 1.0, "mix": 0.0, "seed": 0}
GROUPS = {"keep": [4], "protect": [1], "lengths": [3, 4], "quotas": [1, 2]}
TOGETHER = [
    ("TokenSelect", {"keep": [3], "protect": [3], "order": 0}, "'protect' is 3, it must be below 'keep', 3"),
    ("TokenGreedySelect", {**GREEDY, "protect": [3]}, "'protect' is 3, it must be below 'keep', 3"),
    ("TokenGreedySelect", {**GREEDY, "power": 4.5}, "'power' must be 0 to 4, got 4.5"),
    ("TokenGreedySelect", {**GREEDY, "mix": -1.0}, "'mix' must be 0 to 1000000000, got -1"),
    ("TokenGroupSelect", {**GROUPS, "lengths": [3]}, "'lengths' and 'quotas' name 1 and 2 groups"),
    ("TokenGroupSelect", {**GROUPS, "quotas": [0, 5]}, "'quotas' wants 5 of group 1, which has 4 tokens"),
    ("TokenGroupSelect", {**GROUPS, "keep": [5]}, "'protect' and 'quotas' add up to 4, but 'keep' is 5"),
    ("TokenScore", {"scale": 1.0, "first_row": [4], "end_row": [4]}, "'first_row' is 4, it must be below"),
    ("TokenCombine", {"type": 2}, "'type' must be 1"),
    ("TokenMerge", {**MATCH, "type": 2}, "'type' must be 1"),
    ("TokenMerge", {**MATCH, "type": 1, "keep": [6]}, "but 'keep' and 'remove' add up to 9"),
    (
        "TokenMatch",
        {**MATCH, "keep": [6], "remove": [3]},
        "list 8 tokens, but 'keep' and 'remove' add up to 9",
    ),
    ("TokenMatch", {**MATCH, "keep": [3], "remove": [5]}, "'remove' is 5, but 'sources' has 4"),
    ("TokenMatch", {**MATCH, "sources": [0, 2, 4, 4]}, "'sources' names position 4 a second time"),
    ("TokenMatch", {**MATCH, "sources": [0, 2, 4, 9]}, "'sources' names position 9, which does not exist"),
    (
        "TokenMatch",
        {**MATCH, "sources": list(range(8)), "destinations": np.array([], np.int32)},
        "field 'destinations' is empty",
    ),
]


@pytest.mark.parametrize(("name", "fields", "reason"), TOGETHER)
def test_fields_that_do_not_fit_together_are_refused(name: str, fields: Any, reason: str, path: Path) -> None:
    assert Node.create(path, name, fields) is None
    assert reason in told()


def test_the_timing_cache_tells_apart_what_changes_a_kernel(path: Path) -> None:
    seen = set()
    for fields in (
        {"keep": [3], "protect": [0], "order": 0},
        {"keep": [4], "protect": [0], "order": 0},
        {"keep": [3], "protect": [1], "order": 0},
        {"keep": [3], "protect": [0], "order": 1},
    ):
        node = Node.create(path, "TokenSelect", fields)
        assert node is not None
        seen.add(node.texts[3])
    assert len(seen) == 4
    assert "" not in seen
    assert made(path, "TokenMatch").texts[4] == (
        "TokenMatch sources=[8] destinations=[8] others=[1] keep=12 remove=5 order=0"
    )


# Building ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONTRACTS)
def test_shapes_follow_from_attributes_and_a_dynamic_batch(name: str, kind: str, path: Path) -> None:
    inputs, attributes = inputs_of(name, kind)
    node = made(path, name, kind)
    wanted = [item.shape for item in expect(name, inputs_of(name)[0], attributes)]
    shapes = [list(item.shape) for item in inputs]
    found = node.shapes(shapes)
    assert found is not None, told()
    assert [tuple(shape) for shape in found] == wanted
    found = node.shapes([[-1, *shape[1:]] for shape in shapes])
    assert found is not None, told()
    assert [tuple(shape[1:]) for shape in found] == [shape[1:] for shape in wanted]
    assert {shape[0] for shape in found} == {-1}  # the first axis of the first input


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONTRACTS)
def test_types_and_formats(name: str, kind: str, path: Path) -> None:
    node = made(path, name, kind)
    given, wanted = types_of(name, kind)
    assert node.types(given) == wanted
    every = [*given, *wanted]
    assert node.supports(every)
    for place in range(len(every)):
        for other in {FLOAT, HALF, BFLOAT16, INT8, INT32, INT64} - {every[place]}:
            changed = [*every]
            changed[place] = other
            alone = [tensor.type for tensor in (*CONTRACTS[name].inputs, *CONTRACTS[name].outputs)].count(
                "own"
            ) == 1
            floating = other in (FLOAT, HALF, BFLOAT16) and every[place] in (FLOAT, HALF, BFLOAT16)
            free = [tensor.type for tensor in CONTRACTS[name].inputs][place : place + 1] == ["free"]
            assert node.supports(changed) == (floating and (free or (place == 0 and alone)))
        layout = [0] * len(every)
        layout[place] = CHW4
        assert not node.supports(every, layout)


@pytest.mark.parametrize("name", ["TokenCombine", "TokenMerge"])
def test_merging_takes_the_type_it_was_told_alone(name: str, path: Path) -> None:
    node = made(path, name, "float16")
    for kind in KINDS:
        given, wanted = types_of(name, kind)
        assert node.supports([*given, *wanted]) == (kind == "float16")


MISFITS = [
    ("TokenSelect", [[2, 11]], "'keep' is 12, but there are 11 tokens"),
    ("TokenSelect", [[2, 20000]], "axis 1 of input 'score' is 20000, the kernels take up to 16384"),
    ("TokenSelect", [[1025, 17]], "up to 1024"),
    ("TokenSelect", [[2, 17, 1]], "has 3 axes, [BN] was expected"),
    ("TokenGreedySelect", [[2, 11, 8], [2, 11]], "'keep' is 12, but there are 11 tokens"),
    ("TokenGreedySelect", [[2, 17, 8], [2, 16]], "axis 1 of input 'importance' is 16, but N is 17 elsewhere"),
    ("TokenMeans", [[2, 11, 8], [2, 11], [2, 12]], "'start' has 12 positions, but there are 11 tokens"),
    ("TokenMedoids", [[2, 11, 8], [2, 11], [2, 12]], "'start' has 12 positions, but there are 11 tokens"),
    ("TokenMatch", [[2, 18, 8]], "add up to 17, but there are 18 tokens"),
    (
        "TokenGreedySelect",
        [[2, 17, 8193], [2, 17]],
        "axis 2 of input 'metric' is 8193, the kernels take up to 8192",
    ),
    (
        "TokenMatch",
        [[2, 17, 2**27]],
        "'metric' has 2281701376 elements an image, the kernels take up to 2147483647",
    ),
    ("TokenScore", [[2, 300, 17, 4], [2, 300, 17, 4], [1]], "up to 256"),
    (
        "TokenScore",
        [[2, 2, 17, 4], [2, 2, 16, 4], [1]],
        "axis 2 of input 'keys' is 16, but N is 17 elsewhere",
    ),
    ("TokenScore", [[2, 2, 17, 4], [2, 2, 17, 4], [1, 1, 1, 1, 1]], "'bias' has 5 axes, at most 4"),
    ("TokenCombine", [[2, 17, 8], [2, 17, 2], [2, 12], [2, 5], [2, 5]], "axis 2 of input 'size' is 2, not 1"),
    ("TokenCombine", [[2, 17, 8], [2, 17, 1], [2, 12], [2, 5], [2, 4]], "but R is 5 elsewhere"),
    ("TokenMerge", [[2, 18, 8], [2, 18, 1], [2, 18, 8]], "add up to 17, but there are 18 tokens"),
    (
        "TokenMerge",
        [[2, 17, 8], [2, 17, 1], [2, 16, 8]],
        "axis 1 of input 'metric' is 16, but N is 17 elsewhere",
    ),
    ("TokenRestore", [[2, 32769, 8], [2, 17]], "up to 32768"),
    ("TokenRestore", [[2, 17, 8], [3, 17]], "but B is 2 elsewhere"),
]


@pytest.mark.parametrize(("name", "shapes", "reason"), MISFITS)
def test_shapes_that_do_not_fit_are_refused_at_every_stage(
    name: str, shapes: list[list[int]], reason: str, path: Path
) -> None:
    node = made(path, name)
    types = types_of(name, "float32")[0]
    assert node.shapes(shapes) is None
    assert f"{name}: " in (said := told())
    assert reason in said
    assert not node.configure(shapes, types)
    assert reason in told()
    assert not node.shape_change(shapes, types)
    assert reason in told()


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_wrong_number_of_tensors_is_refused(name: str, path: Path) -> None:
    node = made(path, name)
    types = types_of(name, "float32")[0]
    assert node.types([*types, FLOAT]) is None
    assert "inputs and gives" in told()
    assert not node.supports([FLOAT] * (node.outputs))
