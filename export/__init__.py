"""Sources of models: Hugging Face, timm, torchvision and the user's own modules, exported to ONNX."""

from tokenrt._callable import make_callable
from tokenrt.export.pipeline import export
from tokenrt.export.report import ExportReport, ParityRow, TensorInfo

__all__ = ["ExportReport", "ParityRow", "TensorInfo", "export"]

make_callable(__name__, "export")
