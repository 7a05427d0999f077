"""A plan is data: which sites, which method, how many tokens stay. It prints as TOML, can be edited and applied again."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, SupportsIndex

from tokenrt.errors import PlanError
from tokenrt.files import atomic
from tokenrt.passes import schedules
from tokenrt.passes.rates import Rates

if TYPE_CHECKING:
    from tokenrt.passes.methods.contract import Method

Where = Literal["after-attention", "after-block"]
PLACES: tuple[Where, ...] = ("after-attention", "after-block")
KEYS = ("method", "tokens", "protected", "blocks", "proportional_attention", "options", "macs", "site")


@dataclass(frozen=True)
class PlannedSite:
    """One reduction: `tokens` stay behind `where` of block `block` (blocks count from 0)."""

    block: int
    where: Where
    tokens: int


@dataclass(frozen=True)
class Plan:
    """Everything the rewrite needs besides the model.

    tokens: the model's own count N. macs_before, macs_after: multiply-accumulates of one image. seed of
    nothing: a plan is deterministic.
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

    def counts(self) -> list[int]:
        """Tokens at every stage, the model's own count first."""
        return [self.tokens, *(site.tokens for site in self.sites)]

    def spec(self) -> str:
        """The reduction as one line, e.g. reduce{method=tome,sites=0:189;1:181,proportional=true}."""
        sites = ";".join(
            f"{site.block}{'+' if site.where == 'after-block' else ''}:{site.tokens}" for site in self.sites
        )
        options = "".join(f",{key}={value}" for key, value in sorted(self.options.items()))
        return f"reduce{{method={self.method},sites={sites},proportional={str(self.proportional_attention).lower()}{options}}}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "tokens": self.tokens,
            "protected": self.protect,
            "blocks": self.blocks,
            "proportional_attention": self.proportional_attention,
            "options": dict(self.options),
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
        for key in ("method", "tokens", "protected", "blocks", "proportional_attention"):
            document[key] = self.as_dict()[key]
        document["options"] = dict(self.options)
        document["macs"] = {"before": self.macs_before, "after": self.macs_after}
        sites = tomlkit.aot()
        for site in self.sites:
            table = tomlkit.table()
            table.update({"block": site.block, "where": site.where, "tokens": site.tokens})
            sites.append(table)
        document["site"] = sites
        return tomlkit.dumps(document)

    def save(self, path: str | os.PathLike[str]) -> None:
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
        for site, before in zip(self.sites, self.counts(), strict=False):
            table.add_row(
                str(site.block), site.where, str(before), str(site.tokens), str(before - site.tokens)
            )
        ratio = f" ({self.macs_after / self.macs_before:.1%})" if self.macs_before else ""
        full, left = self.macs_before / 1e9, self.macs_after / 1e9
        work = f"multiply-accumulates per image: {full:.2f} G before, {left:.2f} G after{ratio}"
        attention = f"proportional attention: {'on' if self.proportional_attention else 'off'}"
        return Group(table, work, attention, *(escape(f"note: {note}") for note in self.notes))


def _entry(file: Path, data: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = data.get(key, default)
    if value is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise PlanError(f"plan {file}: {key!r} must be {kind.__name__}, found {value!r}")
    return value


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


@dataclass(frozen=True)
class Budget:
    """How much to remove, before it is turned into counts. Make one with remove, keep, tokens, flops or schedule."""

    kind: Literal["remove", "keep", "tokens", "flops", "schedule"]
    amount: float = 0
    layers: tuple[int, ...] | None = None
    counts: tuple[int, ...] = ()
    name: str = ""
    rates: Rates | None = None

    @classmethod
    def remove(cls, tokens: int, layers: Sequence[int] | None = None) -> Budget:
        """`tokens` leave at every block (or at `layers`)."""
        if not _whole(tokens) or tokens < 0:
            raise PlanError(
                f"--remove {tokens}: a whole number of tokens, 0 or more, can be removed per block"
            )
        return cls("remove", int(tokens), _layer_list(layers))

    @classmethod
    def keep(cls, ratio: float, layers: Sequence[int] | None = None) -> Budget:
        """At each layer, ceil(ratio * unprotected tokens) stay."""
        if not _number(ratio) or not 0 < ratio <= 1:
            raise PlanError(f"--keep {ratio}: a keep ratio lies above 0 and is at most 1")
        return cls("keep", float(ratio), _layer_list(layers))

    @classmethod
    def tokens(cls, counts: Sequence[int], layers: Sequence[int] | None = None) -> Budget:
        """Exact counts, protected tokens included, one per block or per layer of `layers`."""
        return cls("tokens", 0, _layer_list(layers), _list("--tokens", counts))

    @classmethod
    def flops(cls, fraction: float) -> Budget:
        """The largest plan with a constant removal per block that needs at most this fraction of the model's work."""
        if not _number(fraction) or not 0 < fraction <= 1:
            raise PlanError(
                f"--flops {fraction}: a fraction of the model's work lies above 0 and is at most 1"
            )
        return cls("flops", float(fraction))

    @classmethod
    def schedule(
        cls,
        name: str,
        value: float | str | os.PathLike[str] | Mapping[str, Any],
        layers: Sequence[int] | None = None,
    ) -> Budget:
        """A schedule by name: `value` is R, a ratio, or rates per block; see `tokenrt.passes.schedules.SCHEDULES`."""
        amount, rates = schedules.read(name, value)
        return cls("schedule", amount, _layer_list(layers), (), name, rates)

    def option(self) -> str:
        """The budget as the command line spells it, as in --remove 8."""
        whole = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"--schedule {self.name}={whole}" if self.kind == "schedule" else f"--{self.kind} {whole}"


def _whole(value: object) -> bool:
    return isinstance(value, SupportsIndex) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, bool)


def _list(option: str, values: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(values, Iterable) or not all(_whole(value) for value in values):
        raise PlanError(f"{option} {values!r}: expected a list of whole numbers")
    return tuple(int(value) for value in values)


def _layer_list(layers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if layers is None else _list("--layers", layers)


def resolve(
    budget: Budget, method: Method, tokens: int, protect: int, blocks: int, where: Where
) -> tuple[tuple[PlannedSite, ...], tuple[str, ...]]:
    """Turn any budget but flops into integer counts. Raises: PlanError naming the block and the limit."""
    layers = _layers(budget, blocks)
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
    here = tokens
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
            here = wanted
    if budget.kind == "schedule":
        notes.append(
            f"schedule {budget.name}: {schedule.summary}; {tokens - here} of {tokens} tokens leave in all"
        )
    return tuple(sites), tuple(notes)


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


def _layers(budget: Budget, blocks: int) -> list[int]:
    if budget.layers is None:
        if budget.kind == "keep":
            raise PlanError(
                "--keep needs --layers: the blocks (from 0) at which the ratio applies, e.g. --layers 3,6,9"
            )
        if budget.kind == "schedule":
            return schedules.get(budget.name).blocks(blocks)
        return list(range(blocks))
    for layer in budget.layers:
        if not 0 <= layer < blocks:
            raise PlanError(f"--layers: block {layer} does not exist; the model has blocks 0 to {blocks - 1}")
    if len(set(budget.layers)) != len(budget.layers):
        raise PlanError(f"--layers {','.join(map(str, budget.layers))}: a block is named twice")
    return sorted(budget.layers)
