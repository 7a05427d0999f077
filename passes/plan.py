"""A plan is data: which sites, which method, how many tokens stay. It prints as TOML, can be edited and applied again."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenrt.errors import PlanError
from tokenrt.files import atomic
from tokenrt.passes import schedules
from tokenrt.passes.budget import Budget as Budget
from tokenrt.passes.methods.contract import Returns

if TYPE_CHECKING:
    from tokenrt.passes.methods.contract import Method

Where = Literal["around-attention", "after-attention", "after-block"]
PLACES: tuple[Where, ...] = ("around-attention", "after-attention", "after-block")
KEYS = (
    "method",
    "tokens",
    "protected",
    "grid",
    "blocks",
    "proportional_attention",
    "options",
    "macs",
    "site",
)
BACK = {
    "after-attention": "right after each attention",
    "before-next-site": "before the block of the next site, and behind the last block",
    "before-last-block": "before the last block",
}
"""When the tokens that left are there again, for methods that say so."""


@dataclass(frozen=True)
class PlannedSite:
    """One reduction: `tokens` stay behind `where` of block `block` (blocks count from 0)."""

    block: int
    where: Where
    tokens: int


@dataclass(frozen=True)
class Plan:
    """Everything the rewrite needs besides the model.

    tokens: the model's own count N. grid: layout of the unprotected ones, where known. macs_before, macs_after:
    multiply-accumulates of one image. seed of nothing: a plan is deterministic.
    """

    method: str
    tokens: int
    protect: int
    blocks: int
    sites: tuple[PlannedSite, ...]
    proportional_attention: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    macs_before: int = 0
    macs_after: int = 0
    notes: tuple[str, ...] = ()
    grid: tuple[int, ...] | None = None

    def counts(self) -> list[int]:
        """The model's own count, then the tokens behind each site."""
        return [self.tokens, *(site.tokens for site in self.sites)]

    def arriving(self) -> list[int]:
        """Tokens that reach each site."""
        counts = self.counts()[: len(self.sites)]
        return [self.tokens] * len(counts) if all_return(self.returns) else counts

    @property
    def returns(self) -> Returns:
        """When the tokens that left come back; the method decides. Raises: MethodError where there is no such method."""
        from tokenrt.passes import methods

        return methods.get(self.method).returns

    def spec(self) -> str:
        """The reduction as one line, e.g. reduce{method=tome,sites=0:189;1:181,proportional=true}."""
        signs = {"after-block": "+", "around-attention": "~"}
        sites = ";".join(f"{s.block}{signs.get(s.where, '')}:{s.tokens}" for s in self.sites)
        options = "".join(f",{key}={value}" for key, value in sorted(_written(self.options).items()))
        return f"reduce{{method={self.method},sites={sites},proportional={str(self.proportional_attention).lower()}{options}}}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "tokens": self.tokens,
            "protected": self.protect,
            "grid": list(self.grid) if self.grid else None,
            "blocks": self.blocks,
            "proportional_attention": self.proportional_attention,
            "options": _written(self.options),
            "macs": {"before": self.macs_before, "after": self.macs_after},
            "sites": [{"block": s.block, "where": s.where, "tokens": s.tokens} for s in self.sites],
            "notes": list(self.notes),
        }

    def to_toml(self) -> str:
        import tomlkit

        document = tomlkit.document()
        document.add(
            tomlkit.comment(
                "tokenrt plan: edit the token counts or delete sites, then: tokenrt reduce MODEL --plan THIS -o OUT"
            )
        )
        for key in ("method", "tokens", "protected", "grid", "blocks", "proportional_attention"):
            if self.as_dict()[key] is not None:
                document[key] = self.as_dict()[key]
        document["options"] = _written(self.options)
        document["macs"] = {"before": self.macs_before, "after": self.macs_after}
        sites = tomlkit.aot()
        for site in self.sites:
            table = tomlkit.table()
            table.update({"block": site.block, "where": site.where, "tokens": site.tokens})
            sites.append(table)
        document["site"] = sites
        return tomlkit.dumps(document)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan file. Raises: PlanError where an option holds arrays, which it cannot."""
        for key, value in self.options.items():
            if isinstance(value, Mapping):
                raise PlanError(
                    f"option {key!r} of {self.method} holds arrays, and a plan file names a file: write them with "
                    "numpy.savez and give its path"
                )
        with atomic(path) as temporary:
            temporary.write_text(self.to_toml(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan. Raises: PlanError naming the file, the key and what was expected."""
        import tomlkit
        from tomlkit.exceptions import TOMLKitError

        file = Path(path)
        try:
            data = tomlkit.parse(file.read_text(encoding="utf-8")).unwrap()
        except (OSError, UnicodeDecodeError, TOMLKitError) as cause:
            raise PlanError(f"cannot read plan {file}: {cause}") from cause
        _known(file, "the plan", data, KEYS)
        sites = [
            _site(file, number, entry) for number, entry in enumerate(_entry(file, data, "site", list, []))
        ]
        macs = _entry(file, data, "macs", dict, {})
        return cls(
            method=_entry(file, data, "method", str),
            tokens=_entry(file, data, "tokens", int),
            protect=_entry(file, data, "protected", int),
            blocks=_entry(file, data, "blocks", int),
            sites=tuple(sites),
            proportional_attention=_entry(file, data, "proportional_attention", bool),
            options=_entry(file, data, "options", dict, {}),
            macs_before=_entry(file, macs, "before", int, 0),
            macs_after=_entry(file, macs, "after", int, 0),
            grid=_grid(file, data.get("grid")),
        )

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table

        table = Table(
            title=f"plan: {self.method} on {self.blocks} blocks, {self.tokens} tokens ({self.protect} protected)"
        )
        for name in ("block", "where", "tokens in", "tokens out", "removed"):
            table.add_column(name, justify="left" if name == "where" else "right")
        for site, before in zip(self.sites, self.arriving(), strict=True):
            table.add_row(
                str(site.block), site.where, str(before), str(site.tokens), str(before - site.tokens)
            )
        ratio = f" ({self.macs_after / self.macs_before:.1%})" if self.macs_before else ""
        full, left = self.macs_before / 1e9, self.macs_after / 1e9
        work = f"multiply-accumulates per image: {full:.2f} G before, {left:.2f} G after{ratio}"
        attention = f"proportional attention: {'on' if self.proportional_attention else 'off'}"
        back = [f"tokens that left come back {BACK[self.returns]}"] if self.returns in BACK else []
        return Group(table, *back, work, attention, *(escape(f"note: {note}") for note in self.notes))


def _written(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as text formats can hold them: of arrays their names, of paths the text, of None nothing."""
    made: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            made[key] = f"arrays: {', '.join(map(str, value))}"
        elif value is not None:
            made[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return made


def _entry(file: Path, data: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = data.get(key, default)
    if value is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise PlanError(f"plan {file}: {key!r} must be {kind.__name__}, found {value!r}")
    return value


def _grid(file: Path, entry: Any) -> tuple[int, ...] | None:
    if entry is None:
        return None
    if not isinstance(entry, list) or any(type(size) is not int for size in entry):
        raise PlanError(f"plan {file}: 'grid' must be a list of whole numbers, found {entry!r}")
    return tuple(entry)


def _known(file: Path, what: str, entry: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in entry:
        if key not in keys:
            raise PlanError(f"plan {file}: {what} has no entry {key!r}; its entries: {', '.join(keys)}")


def _site(file: Path, number: int, entry: Any) -> PlannedSite:
    if not isinstance(entry, dict):
        raise PlanError(f"plan {file}: site {number} must be a table [[site]], found {entry!r}")
    _known(file, f"site {number}", entry, ("block", "where", "tokens"))
    where = entry.get("where", "after-attention")
    if where not in PLACES:
        raise PlanError(f"plan {file}: site {number}: where={where!r} is not one of {', '.join(PLACES)}")
    return PlannedSite(_entry(file, entry, "block", int), where, _entry(file, entry, "tokens", int))


def resolve(
    budget: Budget, method: Method, tokens: int, protect: int, blocks: int, where: Where
) -> tuple[tuple[PlannedSite, ...], tuple[str, ...]]:
    """Turn any budget but flops into integer counts. Raises: PlanError naming the block and the limit."""
    layers = _layers(budget, method, blocks, where)
    notes: list[str] = []
    sites: list[PlannedSite] = []
    if budget.kind == "tokens" and len(budget.counts) != len(layers):
        raise PlanError(
            f"--tokens gives {len(budget.counts)} counts for {len(layers)} blocks; give one per block, or name "
            "the blocks with --layers"
        )
    if budget.rates is not None and len(budget.rates.steps) != len(layers):
        raise PlanError(
            f"the rates of --schedule {budget.name} are for {len(budget.rates.steps)} blocks, not {len(layers)}; "
            "give one number per block, or name the blocks with --layers"
        )
    schedule = schedules.get(budget.name or "constant")
    most_it_can = budget.kind in ("remove", "schedule") and schedule.takes == "R"
    here, gone = tokens, 0
    for place, block in enumerate(layers):
        fewest = method.fewest(here, protect)
        if budget.kind in ("remove", "schedule"):
            wanted = schedule.behind(
                schedules.Step(place, len(layers), here, tokens, protect, method, budget.amount, budget.rates)
            )
        elif budget.kind == "keep":
            wanted = method.after_keeping(math.ceil(budget.amount * (here - protect)), protect)
        else:
            wanted = budget.counts[place]
        if most_it_can and wanted < here:
            if not sites and wanted <= protect:
                raise PlanError(
                    f"{budget.option()}: block {block} has {here} tokens, {protect} of them protected; at most "
                    f"{here - fewest} can leave there with {method.name}"
                )
            if wanted < fewest:
                notes.append(
                    f"block {block}: only {here - fewest} of {here - wanted} tokens can leave {here}"
                )
                wanted = fewest
        if wanted >= here and budget.kind != "tokens":
            continue
        check_count(method, block, here, wanted, protect)
        if wanted < here:
            sites.append(PlannedSite(block, where, wanted))
            gone += here - wanted
            here = tokens if all_return(method.returns) else wanted
    if budget.kind == "schedule":
        leave = (
            "tokens leave and come back" if all_return(method.returns) else f"of {tokens} tokens leave in all"
        )
        notes.append(f"schedule {budget.name}: {schedule.summary}; {gone} {leave}")
    return tuple(sites), tuple(notes)


def all_return(when: Returns) -> bool:
    """Whether every site starts from all tokens."""
    return when in ("after-attention", "before-next-site")


def places(when: Returns) -> tuple[Where, ...]:
    """Where a method whose tokens come back at `when` can sit, the usual place first."""
    return PLACES[:1] if when == "after-attention" else PLACES[1:]


def in_time(when: Returns, blocks: int, where: Where) -> range:
    """The blocks whose tokens leave before they come back."""
    late = (2 if where == "after-block" else 1) if when == "before-last-block" else 0
    return range(max(blocks - late, 0))


def check_place(method: Method, block: int, blocks: int, where: Where) -> None:
    """Whether a site of this method can lie there. Raises: PlanError."""
    if where not in places(method.returns):
        raise PlanError(
            f"block {block}: {method.name} cannot sit {where}, only {' or '.join(places(method.returns))}"
        )
    if block not in in_time(method.returns, blocks, where):
        raise PlanError(
            f"block {block} {where}: the tokens {method.name} removes come back before block {blocks - 1}, the last; "
            f"a site can lie at blocks 0 to {in_time(method.returns, blocks, where).stop - 1}"
        )


def check_grid(grid: tuple[int, ...], free: int) -> None:
    """Whether `grid` lays out so many unprotected tokens. Raises: PlanError."""
    if len(grid) not in (2, 3) or min(grid) < 1 or prod(grid) != free:
        raise PlanError(
            f"grid {'x'.join(map(str, grid))} has {prod(grid)} cells; it must be (h, w) or (frames, h, w) with as many as "
            f"there are unprotected tokens, {free}"
        )


def check_count(method: Method, block: int, tokens: int, keep: int, protect: int) -> None:
    """Whether `keep` of `tokens` can stay at a block. Raises: PlanError with the numbers."""
    if keep > tokens:
        raise PlanError(f"block {block}: {keep} tokens are to stay, but only {tokens} arrive there")
    if keep <= 0:
        raise PlanError(
            f"block {block}: {keep} tokens are to stay; at least {protect + 1} must ({protect} protected and one more)"
        )
    if keep <= protect:
        raise PlanError(
            f"block {block}: {keep} tokens are to stay, but {protect} are protected and at least one more must stay"
        )
    fewest = method.fewest(tokens, protect)
    if keep < fewest:
        raise PlanError(
            f"block {block}: {method.name} can leave at least {fewest} of {tokens} tokens in one step, not {keep}"
        )


def _layers(budget: Budget, method: Method, blocks: int, where: Where) -> list[int]:
    usable = in_time(method.returns, blocks, where)
    if budget.layers is None:
        if budget.kind == "keep":
            raise PlanError(
                "--keep needs --layers: the blocks (from 0) at which the ratio applies, e.g. --layers 3,6,9"
            )
        if budget.kind == "schedule":
            return [block for block in schedules.get(budget.name).blocks(blocks) if block in usable]
        return list(usable)
    for layer in budget.layers:
        if not 0 <= layer < blocks:
            raise PlanError(f"--layers: block {layer} does not exist; the model has blocks 0 to {blocks - 1}")
        check_place(method, layer, blocks, where)
    if len(set(budget.layers)) != len(budget.layers):
        raise PlanError(f"--layers {','.join(map(str, budget.layers))}: a block is named twice")
    return sorted(budget.layers)
