"""What modelopt's AutoCast keeps in float32: nodes whose values leave the range in which half precision is fine.

AutoCast runs the model and looks at every tensor. It knows nothing of model-local functions, and a model it casts itself
loses them; so it only judges here, on the inlined form, and our own pass casts what both find fit for it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tokenrt.passes.checking.check_data import Feed, quiet
from tokenrt.passes.forms.limits import STANDARD
from tokenrt.passes.forms.lower import lower
from tokenrt.passes.graph.model import save

PACKAGE, MODULE = "nvidia-modelopt", "modelopt"
REMEDY = "pip install --no-deps nvidia-modelopt nvidia-ml-py lief"
"""Its own requirements pin an older onnx; these three are what its judgement needs beside ours."""

DATA_MAX = 512
"""Largest value of a half tensor: AutoCast's own default, where neighbouring float16 numbers are 0.5 apart."""


@dataclass(frozen=True)
class Judgement:
    """Nodes to keep in float32, by their first output, out of all it looked at; the release that judged."""

    full: frozenset[str]
    judged: int
    version: str


def installed() -> bool:
    """Whether AutoCast is here. Nothing is imported."""
    return find_spec(MODULE) is not None


def judge(model: ir.Model, feeds: Sequence[Feed], init_max: float) -> Judgement:
    """Let AutoCast run `model` on `feeds` and judge its nodes; those inside functions are not ours to judge.

    init_max: the largest number of the half type. Raises: whatever AutoCast does; ImportError when it is not whole.
    """
    import onnx

    own = {
        str(node.outputs[0].name)
        for node in model.graph
        if node.domain in STANDARD and node.outputs and node.outputs[0].name
    }
    plain = lower(model, inline=True).model
    for number, node in enumerate(plain.graph):
        node.name = f"judged_{number}"
    with _silent(), quiet(), tempfile.TemporaryDirectory(prefix="tokenrt-") as folder:
        import modelopt
        from modelopt.onnx.autocast import utils
        from modelopt.onnx.autocast.nodeclassifier import NodeClassifier
        from modelopt.onnx.autocast.referencerunner import ReferenceRunner

        for number, feed in enumerate(feeds):
            np.savez(Path(folder) / f"{number:04}.npz", **feed)  # type: ignore[arg-type]
        proto = onnx.load(save(plain, Path(folder) / "model.onnx"))
        _, weights, weights_of = utils.setup_mappings(proto)
        seen = ReferenceRunner(proto, ["cpu"]).run(folder)
        classifier = NodeClassifier(proto, weights_of, weights, data_max=DATA_MAX, init_max=init_max)
        _, high = classifier.run(seen)
        version = str(modelopt.__version__)
    outputs = {node.name: node.output[0] for node in proto.graph.node}
    return Judgement(frozenset(own & {outputs[name] for name in high}), len(own), version)


@contextmanager
def _silent() -> Iterator[None]:
    """AutoCast logs every node it keeps, on standard output."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
