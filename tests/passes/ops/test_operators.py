"""What every operator of the domain owes: sound functions at every opset, static shapes, names of its own."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import defs, inliner, shape_inference

from tests.passes.ops.helpers.cases import SHAPES, cases
from tests.passes.ops.helpers.runner import OPSETS, model, run
from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops import DOMAIN, OPERATORS
from tokenrt.targets.build import build

NAMES = sorted(OPERATORS)


def test_every_operator_is_covered_here() -> None:
    assert set(cases()) == set(SHAPES) == set(OPERATORS)


def test_importing_the_operators_does_not_import_onnx() -> None:
    code = "import sys, tokenrt.passes.ops, tokenrt.passes.methods as m; m.names(); sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("opset", OPSETS)
def test_shapes_are_static_without_inlining_and_the_batch_keeps_its_name(name: str, opset: int) -> None:
    inputs, attributes = cases()[name]
    inferred = shape_inference.infer_shapes(
        model(name, inputs, attributes, opset), check_type=True, strict_mode=True, data_prop=True
    )
    found = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in inferred.graph.value_info
    }
    for output, shape in zip(OPERATORS[name].outputs, SHAPES[name], strict=True):
        assert found[f"inner_{output}"] == ["B", *shape]


@pytest.mark.parametrize(
    ("name", "inputs", "attributes"),
    [
        ("TokenSelect", [(2, 9)], {"keep": 1, "protect": 0, "order": 0}),
        (
            "TokenMatch",
            [(2, 2, 4)],
            {"sources": [0], "destinations": [1], "others": [], "keep": 1, "remove": 1, "order": 0},
        ),
        ("TokenCluster", [(2, 9, 4)], {"keep": 1, "remove": 8, "linkage": 0}),
        ("TokenPeaks", [(2, 9, 4)], {"keep": 1, "neighbours": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_token_left_is_a_static_shape_too(
    name: str, inputs: list[tuple[int, ...]], attributes: dict[str, Any]
) -> None:
    given = [np.ones(shape, np.float32) for shape in inputs]
    inferred = shape_inference.infer_shapes(model(name, given, attributes), strict_mode=True, data_prop=True)
    found = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.value_info}
    for output in OPERATORS[name].outputs:
        assert all(size.dim_value for size in found[f"inner_{output}"][1:]), output


@pytest.mark.parametrize("name", NAMES)
def test_inlined_only_standard_operators_are_left(name: str) -> None:
    inlined = inliner.inline_local_functions(model(name, *cases()[name]))
    onnx.checker.check_model(inlined, full_check=True)
    assert {node.domain for node in inlined.graph.node} == {""}
    assert not inlined.functions


@pytest.mark.parametrize("name", NAMES)
def test_bodies_use_operators_that_have_not_changed_since_opset_13(name: str) -> None:
    for node in OPERATORS[name].function(13).node:
        old, new = defs.get_schema(node.op_type, 13), defs.get_schema(node.op_type, defs.onnx_opset_version())
        given = len(node.input)
        assert [port.name for port in old.inputs][:given] == [port.name for port in new.inputs][:given], (
            node.op_type
        )
        for attribute in node.attribute:
            assert attribute.name in new.attributes, (node.op_type, attribute.name)
        assert not any(
            attribute.required and attribute.name not in {a.name for a in node.attribute}
            for attribute in new.attributes.values()
        )


def test_names_inside_bodies_belong_to_one_operator() -> None:
    values = {
        name: {value for node in operator.function(18).node for value in (*node.input, *node.output)}
        for name, operator in OPERATORS.items()
    }
    for one, other in itertools.combinations(values, 2):
        assert not values[one] & values[other]
    assert all(value.startswith(f"{name}_") for name, own in values.items() for value in own)


@pytest.mark.parametrize("name", NAMES)
def test_every_declared_attribute_is_read_and_no_reduction_scatters(name: str) -> None:
    function = OPERATORS[name].function(18)
    read = {attribute.ref_attr_name for node in function.node for attribute in node.attribute}
    assert read - {""} == set(OPERATORS[name].attributes)
    assert "reduction" not in {attribute.name for node in function.node for attribute in node.attribute}


def test_an_opset_before_13_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        UnsupportedError, match=r"TokenSelect needs opset 13 .* imports 12.*version_converter"
    ):
        OPERATORS["TokenSelect"].function(12)


@pytest.mark.parametrize("name", [name for name in NAMES if OPERATORS[name].widens])
def test_what_a_body_widens_it_takes_in_half_and_computes_in_float32(name: str) -> None:
    inputs, attributes = cases()[name]
    half = [
        np.asarray(item).astype(np.float16) if key in OPERATORS[name].widens else item
        for key, item in zip(OPERATORS[name].inputs, inputs, strict=True)
    ]
    wide = [item.astype(np.float32) if item.dtype == np.float16 else item for item in half]
    for found, wanted in zip(run(name, half, attributes), run(name, wide, attributes), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


def test_attributes_are_complete_and_numbers_become_lists() -> None:
    select = OPERATORS["TokenSelect"]
    assert select.settle({"keep": 3, "protect": [1], "order": True}) == {
        "keep": [3],
        "protect": [1],
        "order": 1,
    }
    with pytest.raises(TypeError, match="TokenSelect takes"):
        select.settle({"keep": 3})


@pytest.mark.parametrize("name", NAMES)
def test_tensorrt_rtx_builds_it(name: str, tmp_path: Path) -> None:
    source = model(name, *cases()[name])
    onnx.save(source, tmp_path / "operator.onnx")
    build(tmp_path / "operator.onnx", target="rtx-sm89", output=tmp_path / "operator.engine", batch="1:4:8")
    assert (tmp_path / "operator.engine").stat().st_size > 0
    assert {function.domain for function in source.functions} == {DOMAIN}
