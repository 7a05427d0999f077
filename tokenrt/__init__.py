"""Token reduction for transformers, as a compiler pass on ONNX graphs.

Everything public is here and loads on first use: `import tokenrt` pulls in neither onnx nor any runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenrt.errors import (
    BuildError,
    DependencyError,
    DeviceError,
    ExportError,
    InternalError,
    MethodError,
    ModelError,
    NothingToDoError,
    PlanError,
    ProofError,
    ShapeError,
    TargetError,
    TokenrtError,
    UnsupportedError,
)
from tokenrt.version import __version__

if TYPE_CHECKING:
    from tokenrt.api import apply_method as apply_method
    from tokenrt.api import lower as lower
    from tokenrt.diagnosis import doctor as doctor
    from tokenrt.export import export as export
    from tokenrt.passes.checking.check import check as check
    from tokenrt.passes.forms.convert import convert as convert
    from tokenrt.passes.inspect import inspect as inspect
    from tokenrt.passes.methods.catalog import catalog as methods
    from tokenrt.passes.planning.plan import Budget as Budget
    from tokenrt.passes.planning.plan import Plan as Plan
    from tokenrt.passes.reduce import plan as plan
    from tokenrt.passes.reduce import reduce as reduce
    from tokenrt.passes.report import Reduced as Reduced
    from tokenrt.perf.compare.compare import compare as compare
    from tokenrt.perf.profile.profile import profile as profile
    from tokenrt.perf.report.report import report as report
    from tokenrt.perf.tune.tune import tune as tune
    from tokenrt.targets import targets as targets
    from tokenrt.targets.build import build as build

# name -> (module, attribute). `export` and `targets` are packages that answer calls: the package is the
# value whether or not it was imported before, so the name never changes its meaning.
_LAZY: dict[str, tuple[str, str | None]] = {
    "Budget": ("tokenrt.passes.planning.plan", "Budget"),
    "Plan": ("tokenrt.passes.planning.plan", "Plan"),
    "Reduced": ("tokenrt.passes.report", "Reduced"),
    "apply_method": ("tokenrt.api", "apply_method"),
    "build": ("tokenrt.targets.build", "build"),
    "check": ("tokenrt.passes.checking.check", "check"),
    "compare": ("tokenrt.perf.compare.compare", "compare"),
    "convert": ("tokenrt.passes.forms.convert", "convert"),
    "doctor": ("tokenrt.diagnosis", "doctor"),
    "export": ("tokenrt.export", None),
    "inspect": ("tokenrt.passes.inspect", "inspect"),
    "lower": ("tokenrt.api", "lower"),
    "methods": ("tokenrt.passes.methods.catalog", "catalog"),
    "plan": ("tokenrt.passes.reduce", "plan"),
    "plugins": ("tokenrt.plugins", None),
    "profile": ("tokenrt.perf.profile.profile", "profile"),
    "reduce": ("tokenrt.passes.reduce", "reduce"),
    "report": ("tokenrt.perf.report.report", "report"),
    "targets": ("tokenrt.targets", None),
    "tune": ("tokenrt.perf.tune.tune", "tune"),
}

__all__ = [
    "Budget",
    "BuildError",
    "DependencyError",
    "DeviceError",
    "ExportError",
    "InternalError",
    "MethodError",
    "ModelError",
    "NothingToDoError",
    "Plan",
    "PlanError",
    "ProofError",
    "Reduced",
    "ShapeError",
    "TargetError",
    "TokenrtError",
    "UnsupportedError",
    "__version__",
    "apply_method",
    "build",
    "check",
    "compare",
    "convert",
    "doctor",
    "export",
    "inspect",
    "lower",
    "methods",
    "plan",
    "plugins",
    "profile",
    "reduce",
    "report",
    "targets",
    "tune",
]


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    loaded = import_module(module)
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
