"""Errors a user can meet: one tree, one clear message each, exit status 2 on the command line."""

from __future__ import annotations


class TokenrtError(Exception):
    """Base of every error tokenrt raises on purpose; the message says what failed and what to do next."""


class ModelError(TokenrtError):
    """The model file cannot be read, is not ONNX, or breaks the ONNX rules."""


class ShapeError(TokenrtError):
    """A shape the analysis needs is dynamic or unknown; the message names the `--shape` that fixes it."""


class UnsupportedError(TokenrtError):
    """The model is sound but something in it is not supported; the message names the node and the reason."""


class NothingToDoError(TokenrtError):
    """No site took a reduction; the message lists every refusal. `--allow-noop` turns it into success."""


class PlanError(TokenrtError):
    """A plan or budget does not fit the model: unknown layer, too many tokens, nothing left to keep."""


class MethodError(TokenrtError):
    """Unknown method, unknown option, or an input tensor the method needs is missing."""


class ProofError(TokenrtError):
    """The rewritten copy failed its proof and was discarded; nothing was written."""


class ExportError(TokenrtError):
    """The source model could not be loaded or exported."""


class TargetError(TokenrtError):
    """Unknown target, or a target file that does not hold what a target needs."""


class BuildError(TokenrtError):
    """The engine builder refused the model; the message names the node."""


class DeviceError(TokenrtError):
    """A device cannot be reached, lacks what is needed there, or gave results that are not whole."""


class DependencyError(TokenrtError):
    """An optional package is missing; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'tokenrt[{extra}]'")
        self.package, self.extra = package, extra
