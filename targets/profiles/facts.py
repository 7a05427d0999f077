"""The facts a target profile may state, each with the check of its value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

from tokenrt.passes.forms.decompose import FORMS

UNVERIFIED = "unverified"
PRECISIONS = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4", "int4")
WINNERS = ("plugin", "function")

Value = Any
"""str | bool | int | float | list[str] | list[int] | dict[str, float], as the fact's own check says."""

Check = Callable[[Value], str | None]
"""None when the value is right, else what was expected."""


@dataclass(frozen=True)
class Fact:
    """One thing known of a target, with where it is from and when it was looked up or measured."""

    value: Value
    source: str
    date: date
    note: str = ""

    @property
    def known(self) -> bool:
        return bool(self.value != UNVERIFIED)

    @property
    def text(self) -> str:
        """The value as people read it."""
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        if isinstance(self.value, list):
            return ", ".join(map(str, self.value)) or "none"
        if isinstance(self.value, dict):
            return ", ".join(f"{name} {_number(size)}" for name, size in self.value.items())
        return _number(self.value)

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "source": self.source, "date": str(self.date), "note": self.note}


def text(value: Value) -> str | None:
    """Check that the value is a text that says something."""
    return None if isinstance(value, str) and value else "a text"


def _flag(value: Value) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _count(value: Value) -> str | None:
    good = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return None if good else "a number above 0"


def _amount(value: Value) -> str | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return None if good else "a number above 0"


def _texts(value: Value, allowed: tuple[str, ...] = ()) -> str | None:
    good = isinstance(value, list) and all(
        isinstance(item, str) and (not allowed or item in allowed) for item in value
    )
    return None if good else f"a list out of {', '.join(allowed)}" if allowed else "a list of texts"


def _range(value: Value) -> str | None:
    good = isinstance(value, list) and len(value) == 2 and all(_count(item) is None for item in value)
    return None if good and value[0] <= value[1] else "a list of two numbers, lowest first"


def _dotted(value: Value, example: str) -> str | None:
    parts = value.split(".") if isinstance(value, str) else []
    good = len(parts) >= 2 and all(part.isdecimal() for part in parts)
    return None if good else f'a text such as "{example}"'


def _capability(value: Value) -> str | None:
    single = not isinstance(value, str) or value.count(".") == 1
    return _dotted(value, "8.9") if single else 'a text such as "8.9"'


def _capabilities(value: Value) -> str | None:
    good = isinstance(value, list) and value and all(_capability(item) is None for item in value)
    return None if good else 'a list of texts such as "8.9"'


def _choice(value: Value, allowed: tuple[str, ...]) -> str | None:
    return None if value in allowed else " or ".join(allowed)


def _throughput(value: Value) -> str | None:
    good = (
        isinstance(value, dict)
        and value
        and all(name in PRECISIONS and _amount(size) is None for name, size in value.items())
    )
    return None if good else f"a table of numbers above 0 by type out of {', '.join(PRECISIONS)}"


HARDWARE: Mapping[str, Check] = {
    "compute_capability": _capability,
    "compute_capabilities": _capabilities,
    "architecture": text,
    "gpus": _texts,
    "memory_gb": _amount,
    "bandwidth_gb_s": _amount,
    "tensor_tflops": _throughput,
    "vector_tflops": _throughput,
    "sm_count": _count,
    "shared_memory_kib": _count,
}
"""The device. Throughput is dense, in 10^12 operations a second, of its matrix units and of the others; memory in 10^9
bytes; shared memory is per SM."""

SOFTWARE: Mapping[str, Check] = {
    "jetpack": text,
    "cuda": partial(_dotted, example="12.6"),
    "tensorrt": partial(_dotted, example="10.3"),
    "precisions": partial(_texts, allowed=PRECISIONS),
    "plugins": _flag,
    "plugin_or_function": partial(_choice, allowed=WINNERS),
}
"""What is installed there. `plugin_or_function` wins where a node has both a plugin and a function body."""

GRAPH: Mapping[str, Check] = {
    "opset": _count,
    "functions": _flag,
    "function_nested_attributes": _flag,
    "function_optional_values": _flag,
    "empty_constants": _flag,
    "contrib_operators": _flag,
    "attention": partial(_texts, allowed=PRECISIONS),
    "attention_flat": _flag,
    "attention_width": _range,
    "attention_single_query_heads": _count,
    "attention_forms": partial(_texts, allowed=tuple(FORMS)),
    "scatter_reduction": _flag,
    "top_k": _count,
    "plain_names": _flag,
}
"""What a model may hold. `opset` is the highest; `attention_flat` is the 3-D form of the Attention operator;
`plain_names` says that names with quotes, backslashes or control characters break the runtime's files."""

FACTS: Mapping[str, Check] = {**HARDWARE, **SOFTWARE, **GRAPH}


def _number(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
