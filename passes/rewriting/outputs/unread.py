"""The output that `export --keep-layer` adds so that a layer stays in the file: it goes once a method has chosen by that layer.

Nobody but such a method reads it, and as long as it is there a runtime computes the whole attention of its layer. Export says in
the model's metadata that it added it; an output of that name in any other model stays.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from tokenrt.passes.graph.interface import GONE
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.rewriting.tidy import tidy

ADDED = re.compile(r"attended_\d+")


def drop(model: ir.Model, plan: Plan) -> tuple[str, ...]:
    """Take such outputs from a model whose plan has chosen at other outputs; their names."""
    if "keep_layer=" not in model.metadata_props.get("tokenrt.export", "") or not plan.outputs:
        return ()
    wanted = {site.output for site in plan.outputs}
    gone = [
        value
        for value in model.graph.outputs
        if ADDED.fullmatch(str(value.name)) and value.name not in wanted
    ]
    for value in gone:
        model.graph.outputs.remove(value)
    names = tuple(str(value.name) for value in gone)
    if names:
        before = filter(None, [model.metadata_props.get(GONE)])
        model.metadata_props[GONE] = ",".join((*before, *names))
        tidy(model)
    return names
