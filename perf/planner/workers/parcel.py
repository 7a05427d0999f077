"""What another process needs to judge plans as this one does, without a disk that both can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.errors import TokenrtError
from tokenrt.passes.checking.check_data import Feed
from tokenrt.passes.graph.model import ModelLike, on_disk
from tokenrt.perf.planner.workbench import Answer, Workbench
from tokenrt.perf.planner.workers.exam import THREADS, Exam


@dataclass(frozen=True)
class Parcel:
    """A model's files, data and the answers to it, to be pickled.

    files: their content by name, the model's first. options: how the model is prepared. key: of the exam that comes of it.
    """

    files: Mapping[str, bytes]
    options: Mapping[str, Any]
    data: Sequence[Feed]
    original: Sequence[Answer]
    key: str

    @classmethod
    def of(cls, model: ModelLike, exam: Exam, options: Mapping[str, Any]) -> Parcel:
        """Read the model, with weights that lie beside it. options: `shape` and `protect`, as of `Workbench.of`."""
        with on_disk(model) as path:
            names = [path.name, *dict.fromkeys(_beside(path))]
            files = {name: (path.parent / name).read_bytes() for name in names}
        return cls(files, options, exam.data, exam.original, exam.key)

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Exam]:
        """The exam, with its files in a folder of its own. Raises: TokenrtError where it is not the one that was packed."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        with Workbench.of(folder / next(iter(self.files)), threads=THREADS, **self.options) as bench:
            exam = Exam(bench, self.data, self.original)
            if exam.key != self.key:
                raise TokenrtError(
                    "a worker prepares another model of the same file, or runs it by other software: install the same versions "
                    "of tokenrt, onnx and onnxruntime on every machine"
                )
            yield exam


def _beside(path: Path) -> Iterator[str]:
    """The files in which a model keeps weights, by their place beside it."""
    for value in ir.load(path).graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield str(value.const_value.location)
