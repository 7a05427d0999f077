"""The contract of each plugin, `plugins/token_*/contract.toml`, and the README made from it.

`python -m tokenrt.plugins.contracts` writes the READMEs, and plugins/common/limits.h from the limits.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.plugins.limits import Limits, header
from tokenrt.plugins.toolchain.compiler import HERE

FILE = "contract.toml"
FLOATS = ("float32", "float16", "bfloat16")
"""What the types `own` and `free` stand for."""

OWN, FREE = "own", "free"
"""The type that every tensor of a node with this word shares, and one that such a tensor has for itself."""

KINDS = {"int": "int", "float": "float", "size": "ints", "list": "ints"}
"""Kind of a field -> kind of the ONNX attribute it comes from."""

STATUS = ("verified on host", "compiled", "unverified")


@dataclass(frozen=True)
class Field:
    """An attribute of a node: one number, or a list of them where `kind` is list. Bounds hold for each number.

    longest: how many a list may hold; 0 where nothing but the tokens bounds it.
    """

    name: str
    kind: str
    meaning: str
    least: int = 0
    most: int = 0
    longest: int = 0


@dataclass(frozen=True)
class Tensor:
    """An input or output. `shape` has a letter an axis, 1 for an axis of one, * for any shape of up to four axes."""

    name: str
    shape: str
    type: str
    meaning: str

    @property
    def axes(self) -> str:
        return "up to four axes" if self.shape == "*" else f"[{','.join(self.shape)}]"

    @property
    def types(self) -> tuple[str, ...]:
        return FLOATS if self.type in (OWN, FREE) else (self.type,)


@dataclass(frozen=True)
class Contract:
    """What one plugin takes and gives, and how far it was verified."""

    operator: str
    kernel: str
    summary: str
    description: str
    fields: tuple[Field, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    limits: Limits
    status: Mapping[str, str]
    folder: Path

    def misfit(self, shapes: Sequence[Sequence[int | None] | None], fields: Mapping[str, Any]) -> str:
        """Why the plugin would refuse a node with inputs of these shapes and these attributes; nothing where it takes it.

        Sizes and whole shapes that are not known count as fitting.
        """
        for field in self.fields:
            held = np.size(fields.get(field.name, ()))
            if field.longest and held > field.longest:
                return f"{field.name} holds {held} numbers, the plugin takes up to {field.longest}"
            for number in np.ravel(fields.get(field.name, ())):
                if field.least < field.most and not field.least <= number <= field.most:
                    return f"{field.name} is {number}, the plugin takes {field.least} to {field.most}"
        letters = [tensor.shape for tensor in self.inputs]
        return self.limits.against(letters, shapes, fields, [tensor.name for tensor in self.inputs])

    def as_dict(self) -> dict[str, Any]:
        return {
            "operator": self.operator,
            "kernel": self.kernel,
            "summary": self.summary,
            "fields": [vars(field) for field in self.fields],
            "inputs": [vars(tensor) for tensor in self.inputs],
            "outputs": [vars(tensor) for tensor in self.outputs],
            "limits": self.limits.as_dict(),
            "status": dict(self.status),
        }

    def readme(self) -> str:
        """The README, with the headings of NVIDIA's own plugins."""
        fields = [
            f"| `{field.name}` | `{KINDS[field.kind]}` | {_range(field)} | {field.meaning} |"
            for field in self.fields
        ]
        parts = [
            f"# {self.operator}",
            self.summary,
            "## Description",
            self.description.strip(),
            "### Structure",
            _tensors("input", self.inputs),
            _tensors("output", self.outputs),
            f"Formats are linear. Types of the model's own are the same for every tensor of a node{self._free()}.",
            "## Parameters",
            "\n".join(("| attribute | ONNX type | numbers | meaning |", "| --- | --- | --- | --- |", *fields))
            if fields
            else "None.",
            "Namespace `tokenrt`, version `1`. An attribute that is missing, unknown, of another type or out of range is an "
            "error that names it; a list that is missing is empty."
            if fields
            else "Namespace `tokenrt`, version `1`. An attribute is an error that names it.",
            "## Limits",
            self.limits.text()
            + " A node beyond them becomes standard operators: `tokenrt lower` and `tokenrt build` see to it.",
            "## Status",
            "\n".join(f"- {what}: {word}" for what, word in self.status.items()),
            "## Additional resources",
            f"- [The kernel](../kernels/{self.kernel}), its division of work, bytes and bound\n"
            f"- [The operator](../../passes/ops/{self.folder.name}.py): NumPy reference and ONNX function\n"
            "- [Building and loading the library](../README.md)",
            "## License",
            "Apache-2.0, as the whole project.",
        ]
        return "\n\n".join(parts) + "\n"

    def _free(self) -> str:
        free = [f"`{tensor.name}`" for tensor in self.inputs if tensor.type == FREE]
        return f", but for {', '.join(free)}, which may have another" if free else ""


def _range(field: Field) -> str:
    if field.kind == "float" and field.least == field.most:
        return "finite"
    many = (
        (f"up to {field.longest} of " if field.longest else "any number of ") if field.kind == "list" else ""
    )
    return f"{many}{field.least} to {field.most}"


def _tensors(title: str, tensors: tuple[Tensor, ...]) -> str:
    rows = [
        f"| `{tensor.name}` | {tensor.axes} | {', '.join(tensor.types)} | {tensor.meaning} |"
        for tensor in tensors
    ]
    return "\n".join((f"| {title} | shape | types | meaning |", "| --- | --- | --- | --- |", *rows))


def misfit(
    operator: str, shapes: Sequence[Sequence[int | None] | None], attributes: Mapping[str, Any]
) -> str:
    """Why no plugin takes a node of this operator; nothing where one does. See Contract.misfit."""
    contract = contracts().get(operator)
    return "there is no plugin of this operator" if contract is None else contract.misfit(shapes, attributes)


@functools.cache
def contracts() -> Mapping[str, Contract]:
    """The contracts by operator, in the order of their names. Raises: TokenrtError for a file that does not fit."""
    found = [_read(path) for path in sorted(HERE.glob(f"token_*/{FILE}"))]
    return {contract.operator: contract for contract in found}


def _read(path: Path) -> Contract:
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
        return Contract(
            fields=tuple(Field(name, **rest) for name, rest in held.pop("fields").items()),
            inputs=tuple(Tensor(name, **rest) for name, rest in held.pop("inputs").items()),
            outputs=tuple(Tensor(name, **rest) for name, rest in held.pop("outputs").items()),
            limits=Limits.read(held.pop("limits")),
            folder=path.parent,
            **held,
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise TokenrtError(f"{path} is no contract of a plugin: {error}") from error


def limits_header() -> str:
    """The text of plugins/common/limits.h."""
    return header({name: contract.limits for name, contract in contracts().items()})


if __name__ == "__main__":
    (HERE / "common" / "limits.h").write_text(limits_header(), encoding="utf-8")
    for contract in contracts().values():
        (contract.folder / "README.md").write_text(contract.readme(), encoding="utf-8")
