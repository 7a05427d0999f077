"""How to export: the options of the command line, checked before anything heavy is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenrt.errors import ExportError

# Opsets each of torch's exporters writes without a conversion afterwards: torch.onnx of 2.14 implements its
# operators at 18 and lifts them up to 23; the TorchScript exporter stops at 20, and below 14 lacks operators
# every transformer has.
OPSETS = {"dynamo": range(18, 24), "torchscript": range(14, 21)}
DTYPES = ("fp32", "fp16")
PARTS = ("vision",)
OF_PARTS = ("image_grid", "keep_layer")
"""Options that only the export of a part takes."""


@dataclass(frozen=True)
class Options:
    """Options of one export; `batch` None leaves the batch dynamic, `part` None exports the model the source names.

    Raises: ExportError naming the option, its value and what it may be.
    """

    opset: int = 18
    dtype: str = "fp32"
    batch: int | None = None
    exporter: str = "dynamo"
    random_weights: bool = False
    seed: int = 0
    image_size: int | None = None
    sequence_length: int | None = None
    part: str | None = None
    image_grid: str | None = None
    keep_layer: int | None = None

    def __post_init__(self) -> None:
        if self.exporter not in OPSETS:
            raise ExportError(f"exporter {self.exporter!r} is unknown; torch has {' and '.join(OPSETS)}")
        if self.dtype not in DTYPES:
            raise ExportError(f"dtype {self.dtype!r} is unknown; export writes {' or '.join(DTYPES)}")
        allowed = OPSETS[self.exporter]
        if self.opset not in allowed:
            others = [name for name, opsets in OPSETS.items() if self.opset in opsets]
            hint = f", or use the {others[0]} exporter" if others else ""
            raise ExportError(
                f"the {self.exporter} exporter does not write opset {self.opset}; choose one from "
                f"{allowed[0]} to {allowed[-1]}{hint}"
            )
        for name in ("batch", "image_size", "sequence_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ExportError(f"{name} is {value}; it must be at least 1")
        if self.part not in (None, *PARTS):
            raise ExportError(f"part {self.part!r} is unknown; export knows {' and '.join(PARTS)}")
        for name in OF_PARTS:
            if getattr(self, name) is not None and self.part is None:
                raise ExportError(f"{name} goes with the vision part of a model: add --part vision")
        if self.image_grid is not None and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", self.image_grid):
            raise ExportError(
                f"image_grid {self.image_grid!r} is no grid: write ROWSxCOLUMNS or FRAMESxROWSxCOLUMNS, as 2x2 or 4x16x16"
            )

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """Frames, rows and columns of `image_grid`."""
        if self.image_grid is None:
            return None
        *frames, rows, columns = map(int, self.image_grid.split("x"))
        return (*frames, 1)[0], rows, columns

    def spec(self) -> str:
        """One line that says how the model was made; goes into its metadata."""
        parts = [
            f"exporter={self.exporter}",
            f"opset={self.opset}",
            f"dtype={self.dtype}",
            f"batch={'dynamic' if self.batch is None else self.batch}",
        ]
        if self.random_weights:
            parts.append(f"random_weights,seed={self.seed}")
        for name in ("image_size", "sequence_length", "part", *OF_PARTS):
            if getattr(self, name) is not None:
                parts.append(f"{name}={getattr(self, name)}")
        return f"export{{{','.join(parts)}}}"
