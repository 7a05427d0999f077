"""Errors a user can meet: one tree, one clear message each.

On the command line they end with exit status 2, what the user can mend; a fault of tokenrt's own (`InternalError`) with 1.
"""

from __future__ import annotations

from tokenrt.version import __version__


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


OURS = "This is a fault in tokenrt, not in your model or your command"


class InternalError(TokenrtError):
    """A fault of tokenrt itself: what happened, where, what was expected and what came, and the line to report it with.

    node: the node or tensor, as messages name it. run: what tokenrt was doing, e.g. the method and the plan.
    """

    def __init__(
        self, what: str, *, node: str = "", expected: str = "", found: str = "", run: str = ""
    ) -> None:
        at = f" At {node}:" if node else ""
        told = f"{at} expected {expected}, got {found}." if expected or found else at.replace(":", ".")
        super().__init__(f"{what}.{told} {OURS}; nothing was written. {report(run)}")
        self.what, self.node, self.expected, self.found, self.run = what, node, expected, found, run


def report(run: str) -> str:
    """The request to report a fault, with the line to report."""
    return f"To report it, send this line: tokenrt {__version__}{', ' * bool(run)}{run}"


class ProofError(InternalError):
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
