"""How much each plugin takes, from the `[limits]` of its contract: the header for the C++ side, and which nodes fit.

A letter names the most an axis may be; `work` the most a product of axes and fields may be, where one launch holds a loop
that nothing else divides: a GPU with a display ends what runs for seconds. An axis without a limit ends where the rows of
an image can no longer be counted in 31 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

MOST_ELEMENTS = 2**31 - 1
"""Of the last two axes of an input: rows and channels."""

NAMES: Mapping[str, str] = {"B": "Batch", "N": "Tokens", "H": "Heads", "D": "Width"}
"""Letters whose limit has a name in the kernels: the most that any operator takes, and a name of its own where one takes less."""

MOST_AXES, MOST_FACTORS = 4, 3
"""What a line of the header holds."""


@dataclass(frozen=True)
class Limits:
    """axes: letter -> most. factors: the fields and axes whose product is at most `work`; none where nothing bounds it.

    beyond: up to so many tokens the work is divided otherwise, and not bounded.
    """

    axes: Mapping[str, int]
    factors: tuple[str, ...] = ()
    work: int = 0
    beyond: int = 0

    @classmethod
    def read(cls, held: Mapping[str, Any]) -> Limits:
        """From a table of a contract. Raises: KeyError, TypeError and ValueError for one that is none."""
        axes = {name: int(most) for name, most in held.items() if name != "work"}
        work = held.get("work", {"of": (), "most": 0})
        if len(axes) > MOST_AXES or len(work["of"]) > MOST_FACTORS:
            raise ValueError(f"[limits] holds up to {MOST_AXES} axes and {MOST_FACTORS} factors")
        return cls(axes, tuple(work["of"]), int(work["most"]), int(work.get("beyond", 0)))

    def most(self, letter: str) -> int:
        """The largest size of an axis; one that counts tokens under another letter has the limit of N."""
        return self.axes.get(letter, MOST_ELEMENTS if letter in "CD" else self.axes["N"])

    def as_dict(self) -> dict[str, Any]:
        return {
            "axes": dict(self.axes),
            "work": {"of": list(self.factors), "most": self.work, "beyond": self.beyond},
        }

    def text(self) -> str:
        """A sentence for the README."""
        listed = ", ".join(f"{letter} to {most}" for letter, most in self.axes.items())
        told = f"{listed}; rows times channels of an image to 2^31 - 1"
        if self.factors:
            told += f"; {' x '.join(f'`{name}`' if len(name) > 1 else name for name in self.factors)} to {self.work}"
            told += f" beyond {self.beyond} tokens" if self.beyond else ""
        return told + "."

    def against(
        self,
        letters: Sequence[str],
        shapes: Sequence[Sequence[int | None] | None],
        fields: Mapping[str, Any],
        names: Sequence[str],
    ) -> str:
        """Why inputs of these shapes do not fit, or nothing where they do; what is not known counts as fitting.

        letters: of the axes of each input. names: of the inputs, for the answer.
        """
        sizes: dict[str, int] = {}
        for name, axes, shape in zip(names, letters, shapes, strict=True):
            if shape is None or axes == "*" or len(shape) != len(axes):
                continue
            known = {letter: size for letter, size in zip(axes, shape, strict=True) if size is not None}
            sizes |= known
            for letter, size in known.items():
                if letter != "1" and size > self.most(letter):
                    return f"{letter} of its input {name!r} is {size}, the plugin takes up to {self.most(letter)}"
            last = [size for size in shape[-2:] if size is not None]
            if len(axes) > 2 and prod(last) > MOST_ELEMENTS:
                return f"its input {name!r} has {prod(last)} elements an image, the plugin takes up to {MOST_ELEMENTS}"
        found = [sizes.get(name) if len(name) == 1 else _number(fields.get(name)) for name in self.factors]
        factors = [item for item in found if item is not None]
        if sizes.get("N", self.beyond + 1) <= self.beyond:
            return ""
        if len(factors) == len(found) and found and prod(factors) > self.work:
            return (
                f"{' x '.join(self.factors)} is {prod(factors)}, the plugin takes up to {self.work}: one launch of it would "
                "run for too long"
            )
        return ""


def _number(value: Any) -> int | None:
    """The number of a field, which an operator may have as a list of one."""
    if value is None:
        return None
    return int(value[0] if isinstance(value, Sequence) else value)


def header(limits: Mapping[str, Limits]) -> str:
    """plugins/common/limits.h: operator -> limits."""
    lines = [
        "// The most that each operator takes. Made by `python -m tokenrt.plugins.contracts` from the [limits] of the",
        "// contracts, plugins/token_*/contract.toml.",
        "#pragma once",
        "",
        "namespace tokenrt {",
        "",
    ]
    most = {letter: max(of.axes.get(letter, 0) for of in limits.values()) for letter in NAMES}
    lines += [f"constexpr int kMost{NAMES[letter]} = {largest};" for letter, largest in most.items()]
    lines += [f"constexpr long long kMostElements = {MOST_ELEMENTS};  // rows times channels of an image"]
    lines += [f"constexpr long long k{name}Work = {of.work};" for name, of in limits.items() if of.factors]
    lines += [
        f"constexpr int k{name}{NAMES[letter]} = {size};"
        for name, of in limits.items()
        for letter, size in of.axes.items()
        if letter in most and size < most[letter]
    ]
    lines += [f"constexpr int k{name}Beyond = {of.beyond};" for name, of in limits.items() if of.beyond]
    lines += [
        "",
        "struct Limits {",
        "    const char* name;",
        "    struct {",
        "        char letter;",
        "        int most;",
        f"    }} axes[{MOST_AXES}];",
        f"    const char* factors[{MOST_FACTORS}];  // letters and fields whose product is at most `work`",
        "    long long work;",
        "    int beyond;  // up to so many tokens the work is not bounded",
        "};",
        "",
        "constexpr Limits kLimits[] = {",
    ]
    for name, of in limits.items():
        axes = ", ".join(f"{{'{letter}', {most}}}" for letter, most in of.axes.items())
        factors = ", ".join(f'"{factor}"' for factor in of.factors)
        lines.append(f'    {{"{name}", {{{axes}}}, {{{factors}}}, {of.work}, {of.beyond}}},')
    return "\n".join((*lines, "};", "", "}  // namespace tokenrt")) + "\n"
