"""Half precision: cast a float32 model to float16 or bfloat16, but for what loses by it.

The reduction itself stays in float32: scores, sums, the logarithm of sizes, and the arithmetic of combining. Casts at
the boundary of the tokenrt operators are nodes of the graph; only the input `tokens`, and an output of its type, are
half there. A softmax inside attention runs in half, between its two products, so that runtimes still fuse it; every
other softmax, exponential and sum stays in float32. See precision.py for the lists, caster.py for the walk.

Where modelopt is installed, its AutoCast runs the model first and also keeps in float32 what leaves the range of values in
which half is fine. The result is compared with the float32 model before it is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from tokenrt.errors import TokenrtError, UnsupportedError
from tokenrt.passes.forms import autocast
from tokenrt.passes.forms.caster import Caster
from tokenrt.passes.graph.model import ModelLike, check_target, load, opset, save
from tokenrt.passes.graph.types import tell_types

if TYPE_CHECKING:
    from tokenrt.passes.checking.check import CheckReport

PRECISIONS = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
LARGEST = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}
RULES = ("auto", "standard", "autocast")
HALF_PAIRS = 19
"""The operator set from which QuantizeLinear and DequantizeLinear take half precision."""

STANDARD = "standard lists"
"""What decides when AutoCast does not."""


@dataclass(frozen=True)
class Conversion:
    """The pass: the type, and whether inputs and outputs keep theirs."""

    precision: str
    keep_io: bool = False

    def spec(self) -> str:
        return f"convert{{{self.precision}{',keep_io' * self.keep_io}}}"


@dataclass(frozen=True)
class Converted:
    """The converted model, how much of it is half, who decided that, and how far it is from the float32 model.

    rules: the standard lists, alone or with AutoCast, or why AutoCast could not judge. ranged: nodes AutoCast keeps
    in float32. drift: None where nothing was compared.
    """

    model: ir.Model
    precision: str
    half: int
    full: int
    casts: int
    clamped: tuple[str, ...]
    rules: str = STANDARD
    ranged: tuple[str, ...] = ()
    drift: CheckReport | None = None
    output: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "precision": self.precision,
            "output": None if self.output is None else str(self.output),
            "half_nodes": self.half,
            "float32_nodes": self.full,
            "casts": self.casts,
            "clamped_constants": list(self.clamped),
            "rules": self.rules,
            "kept_for_their_range": list(self.ranged),
            "check": None if self.drift is None else self.drift.as_dict(),
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        where = "" if self.output is None else f" -> {self.output}"
        lines = [
            f"{self.precision}{where}: {self.half} nodes in half, {self.full} in float32, {self.casts} casts",
            f"decided by the {self.rules}",
        ]
        if self.ranged:
            lines.append(f"kept in float32 for the range of their values: {_some(self.ranged)}")
        if self.clamped:
            lines.append(f"clamped to the range of {self.precision}: {_some(self.clamped)}")
        told = Text("\n".join(lines))
        return told if self.drift is None else Group(told, Text("\nagainst the float32 model:"), self.drift)


def convert(
    model: ModelLike,
    *,
    precision: str,
    keep_io: bool = False,
    rules: str = "auto",
    data: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    check: bool = True,
    output: str | os.PathLike[str] | None = None,
) -> Converted:
    """Convert a copy of `model` to "fp16" or "bf16", and write it where `output` says.

    keep_io: inputs and outputs stay float32, with a cast behind and before them.
    rules: "standard", the lists of mixed precision; "autocast", these and modelopt's AutoCast, which runs the model and
    keeps in float32 what leaves the range of half; "auto", AutoCast where it is installed.
    data: what AutoCast and the comparison run on, as `check` takes it; seeded noise when left out.
    check: compare with the float32 model, and write nothing when values overflow.

    Raises: TokenrtError for another precision or rule, or AutoCast asked for and missing; UnsupportedError for a model
    without float32 inputs or weights, or whose values do not fit the type.
    """
    if precision not in PRECISIONS:
        raise TokenrtError(f"precision is {precision!r}; there are {' and '.join(PRECISIONS)}")
    if rules not in RULES:
        raise TokenrtError(f"rules are {rules!r}; there are {', '.join(RULES)}")
    conversion = Conversion(precision, keep_io)
    if output is not None:
        check_target(output, model)
    copy = load(model)
    _refuse_old_pairs(copy, precision)
    tell_types(copy)
    decided, kept = _judged(copy, precision, rules, data)
    caster = Caster(copy, PRECISIONS[precision], keep_io, kept)
    half, full = caster.run()
    if not half:
        raise UnsupportedError(
            f"nothing in the model can be {precision}: it has no float32 products. A model that is half already is "
            "used as it is; one from another framework may hold its weights as float64"
        )
    made_by = copy.metadata_props.get("tokenrt.passes")
    copy.metadata_props["tokenrt.passes"] = "; ".join(filter(None, (made_by, conversion.spec())))
    done = Converted(
        copy, precision, half, full, caster.casts, tuple(caster.clamped), decided, tuple(sorted(kept))
    )
    if check:
        done = replace(done, drift=_compared(model, done, data))
    return done if output is None else replace(done, output=save(copy, output))


def _refuse_old_pairs(model: ir.Model, precision: str) -> None:
    """Between a pair in float32 and a product in half a cast would stand, and no runtime would find the pair."""
    first = next((node for node in model.graph if node.op_type == "QuantizeLinear"), None)
    if first is not None and opset(model) < HALF_PAIRS:
        raise UnsupportedError(
            f"QuantizeLinear node {first.name!r}: it takes {precision} from opset {HALF_PAIRS} on, and the model imports "
            f"{opset(model)}; bring it to opset {HALF_PAIRS} (onnx.version_converter), or convert the float model, then "
            "quantize"
        )


def _judged(model: ir.Model, precision: str, rules: str, data: Any) -> tuple[str, frozenset[str]]:
    """Who decides, in words, and the first outputs of the nodes AutoCast keeps in float32."""
    from tokenrt.passes.checking.check_data import feeds, inputs_of

    if rules == "autocast" and not autocast.installed():
        raise TokenrtError(
            f"AutoCast is part of {autocast.PACKAGE}, which is not installed: {autocast.REMEDY}"
        )
    if rules == "standard" or not autocast.installed():
        return STANDARD, frozenset()
    ran, _ = feeds(inputs_of(model, model), model, data=data, batch=1, seed=0, samples=1)
    try:
        found = autocast.judge(model, ran, LARGEST[precision])
    except Exception as cause:
        # It raises whatever its runners and readers do; the standard lists do without it.
        why = " ".join(str(cause).split())[:300] or type(cause).__name__
        if rules == "autocast":
            raise UnsupportedError(
                f"AutoCast cannot judge the model: {why}; --rules standard does without it"
            ) from cause
        return f"{STANDARD} alone: AutoCast cannot judge the model ({why})", frozenset()
    return f"{STANDARD} and AutoCast of modelopt {found.version}", found.full


def _compared(model: ModelLike, done: Converted, data: Any) -> CheckReport:
    from tokenrt.passes.checking.check import check

    drift = check(model, done.model, data=data, samples=1, properties=False)
    lost = [found.output for found in drift.outputs if not found.finite]
    if lost:
        advice = "--bf16 has the range of float32"
        if done.precision == "bf16":
            advice = "is the float32 model finite there?"
        elif not autocast.installed():
            advice += f", or let AutoCast find what overflows ({autocast.REMEDY})"
        raise UnsupportedError(
            f"nothing was written: in {done.precision} not all values of output {', '.join(map(repr, lost))} are finite; "
            f"{advice}"
        )
    return drift


def _some(names: tuple[str, ...], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
