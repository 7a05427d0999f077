"""Nodes without a function: what a plugin's creator takes of them, and Polygraphy's runner by the NumPy references."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest

from tests.passes.ops.helpers.cases import cases
from tests.passes.ops.helpers.runner import expect, model
from tests.plugins.helpers import built
from tests.plugins.helpers.interface import needs_compiler
from tests.plugins.helpers.node import Node, told
from tokenrt import lower
from tokenrt.passes.ops import OPERATORS
from tokenrt.plugins import contracts, library, references


@pytest.mark.parametrize("bare", [False, True], ids=["function", "bare"])
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_polygraphy_runs_the_reference(name: str, bare: bool) -> None:
    import onnx_graphsurgeon
    from polygraphy.backend.pluginref import PluginRefRunner

    assert name in references.register()
    inputs, attributes = cases()[name]
    proto = model(name, inputs, attributes)
    if bare:
        proto = onnx_ir.to_proto(lower(onnx_ir.from_proto(proto), plugin=True).model)
    with PluginRefRunner(onnx_graphsurgeon.import_onnx(proto)) as runner:
        found = runner.infer(dict(zip(OPERATORS[name].inputs, inputs, strict=True)))
    for key, wanted in zip(OPERATORS[name].outputs, expect(name, inputs, attributes), strict=True):
        np.testing.assert_allclose(found[key], wanted, rtol=1e-6)


@needs_compiler
@pytest.mark.parametrize("name", sorted(contracts.contracts()))
def test_a_bare_node_is_what_its_creator_takes(name: str) -> None:
    """As TensorRT's parser does: the fields the creator names are looked for among the node's attributes."""
    lowered = onnx_ir.to_proto(lower(onnx_ir.from_proto(model(name, *cases()[name])), plugin=True).model)
    assert not lowered.functions
    node = lowered.graph.node[0]
    given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    assert (given["plugin_version"], given["plugin_namespace"]) == (b"1", b"tokenrt")
    shown = library.described(built.host_library())["operators"][name]["fields"]
    assert {field[0] for field in shown} == set(given) - references.NAMING
    fields = {
        field[0]: np.array(given[field[0]], np.float32 if field[1] == "float" else np.int32)
        for field in shown
    }
    assert Node.create(built.host_library(), name, fields) is not None, told()
