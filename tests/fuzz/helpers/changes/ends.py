"""Changes of inputs and outputs: what the model computed before, it computes still, under the same names."""

from __future__ import annotations

import onnx_ir as ir

from tests.fuzz.helpers.edit import Edit, dims


def second_name(edit: Edit) -> bool:
    """An output under a second name, by Identity."""
    value = edit.drawn.choice(list(edit.graph.outputs))
    node = ir.Node("", "Identity", [value], num_outputs=1, name=edit.name("node"))
    edit.graph.append(node)
    _listed(edit, node.outputs[0], value, edit.drawn.randint(0, len(edit.graph.outputs)))
    return True


def _listed(edit: Edit, value: ir.Value, like: ir.Value, place: int) -> None:
    value.name = edit.name("extra")
    value.type, value.shape = like.type, like.shape
    edit.graph.outputs.insert(place, value)


def output_inside(edit: Edit) -> bool:
    """A value of rank 2, 3 or 4 from inside: the stream, a norm, weights of an attention, something pooled."""
    return _shown(edit, edit.floats(2, 3, 4))


def output_weights(edit: Edit) -> bool:
    """The weights of an attention."""
    return _shown(edit, [node.outputs[0] for node in edit.nodes("Softmax")])


def output_stream(edit: Edit) -> bool:
    """The stream behind a residual."""
    found = [node.outputs[0] for node in edit.nodes("Add") if len(dims(node.outputs[0]) or ()) == 3]
    return _shown(edit, [value for value in found if len(value.uses()) > 1])


def _shown(edit: Edit, found: list[ir.Value]) -> bool:
    found = [
        value
        for value in found
        if not value.is_graph_output() and value.dtype is not None and value.shape is not None
    ]
    if not found:
        return False
    value = edit.drawn.choice(found)
    _listed(edit, value, value, len(edit.graph.outputs))
    return True


def fixed_batch(edit: Edit) -> bool:
    """The batch is a number."""
    size = edit.drawn.randint(1, 3)
    ends = [value for value in (*edit.graph.inputs, *edit.graph.outputs) if value.const_value is None]
    for value in ends:
        if value.shape is not None and not isinstance(value.shape[0], int):
            value.shape = ir.Shape([size, *list(value.shape)[1:]])
    return True


def batch_name(edit: Edit) -> bool:
    """The free batch under another name, or one for each end."""
    for value in (*edit.graph.inputs, *edit.graph.outputs):
        if value.const_value is None and value.shape is not None and not isinstance(value.shape[0], int):
            name = edit.drawn.choice(("N", "batch_size", "unk__12", f"{value.name}_dim_0"))
            value.shape = ir.Shape([name, *list(value.shape)[1:]])
    return True


CHANGES = {
    change.__name__: change
    for change in (second_name, output_inside, output_weights, output_stream, fixed_batch, batch_name)
}
"""They come before all others, since they decide what is compared."""
