"""The weights of a model on disk once, for every model that is made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from tokenrt.passes.graph.model import skeleton

if TYPE_CHECKING:
    import onnx

FILE = "weights.bin"
PAGE = 4096
"""Weights begin at multiples of this, so that a runtime can map them into memory instead of reading them."""


@dataclass(frozen=True)
class Weights:
    """Large weights in one file of a folder. places: where each lies, by the identity of its tensor, with the tensor."""

    folder: Path
    places: dict[int, tuple[int, ir.TensorProtocol]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, folder: Path) -> Weights:
        """Write the large weights of a model, one after the other."""
        found, end = cls(folder), 0
        with (folder / FILE).open("wb") as file:
            for tensor in skeleton(model)[1].values():
                if id(tensor) not in found.places:
                    end += -end % PAGE
                    file.seek(end)
                    file.write(tensor.tobytes())
                    found.places[id(tensor)] = end, tensor
                    end += tensor.nbytes
        return found

    def serialized(self, model: ir.Model) -> bytes:
        """The model as a message without functions, whose large weights are references to the file where they lie there.

        Functions are inlined: of a call ONNX Runtime makes nodes too, and takes several times as long for it.
        """
        import onnx
        import onnx.inliner

        proto, weights = skeleton(model)
        inputs = [value for value in proto.graph.input if value.name not in weights]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        for name, tensor in weights.items():
            proto.graph.initializer.append(self._referred(name, tensor))
        made: bytes = onnx.inliner.inline_local_functions(proto).SerializeToString()
        return made

    def _referred(self, name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
        import onnx

        dims = [int(size) for size in tensor.shape.numpy()]
        proto = onnx.TensorProto(name=name, dims=dims, data_type=tensor.dtype.value)
        if id(tensor) not in self.places:
            proto.raw_data = tensor.tobytes()
            return proto
        proto.data_location = onnx.TensorProto.EXTERNAL
        told = {"location": FILE, "offset": self.places[id(tensor)][0], "length": tensor.nbytes}
        for key, value in told.items():
            proto.external_data.add(key=key, value=str(value))
        return proto
