"""A plan is data: which sites, which method, how many tokens stay. It prints as TOML, can be edited and applied again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenrt.errors import PlanError
from tokenrt.files import atomic
from tokenrt.passes.methods.contract import Returns
from tokenrt.passes.planning import entries
from tokenrt.passes.planning.budget import Budget as Budget
from tokenrt.passes.planning.entries import BEFORE as BEFORE
from tokenrt.passes.planning.entries import COUNTS
from tokenrt.passes.planning.entries import EVERY as EVERY
from tokenrt.passes.planning.entries import PLACES as PLACES
from tokenrt.passes.planning.entries import PlannedSite as PlannedSite
from tokenrt.passes.planning.entries import Transformer as Transformer
from tokenrt.passes.planning.entries import Where as Where
from tokenrt.passes.planning.outputs import cache_site
from tokenrt.passes.planning.outputs import site as output_site
from tokenrt.passes.planning.outputs.cache_site import CacheSite
from tokenrt.passes.planning.outputs.site import OutputSite, inherited, written

if TYPE_CHECKING:
    from tokenrt.passes.methods.contract import Method

KEYS = (
    "method",
    *COUNTS,
    "protect",
    "multiple_of",
    "proportional_attention",
    "options",
    "macs",
    "short",
    "cache",
    "text",
    "transformer",
    "site",
)
PER_LAYER, GATHERED = "per-layer", "gathered"
CACHES = (PER_LAYER, GATHERED)
"""How caches hold the tokens: each layer those that reached it, or every layer those that are left at the end."""

BACK = {
    "after-attention": "right after each attention",
    "before-next-site": "before the block of the next site, and behind the last block",
    "before-last-block": "before the last block",
    "from-last-step": "as the step before left them, where attentions read keys and values and at the end",
}
"""When the tokens that left are there again, for methods that say so."""


@dataclass(frozen=True)
class Plan:
    """Everything the rewrite needs besides the model.

    method, options: those of every site that names none of its own. tokens: the model's own count N. grid: layout of the
    unprotected ones, where known. macs_before, macs_after: multiply-accumulates of one image. wanted: tokens that the user
    protects, as in 0,-1,200:217. multiple_of: what every count is a multiple of. outputs: choices among the tokens of outputs,
    behind those of the blocks. entries: those among the entries of caches, behind all others. short: outputs, by name or "all",
    that keep only the tokens that are left. unit: so many leave together, as such an output needs. cache: one of CACHES. text:
    the words that methods read in a language model, as in 72:80; nothing for all behind the tokens that may leave. A model of
    several transformers has these counts for its first, and in `others` those of transformers 1, 2 and so on, reduced or not.
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
    others: tuple[Transformer, ...] = ()
    wanted: str = ""
    multiple_of: int = 1
    outputs: tuple[OutputSite, ...] = ()
    short: str = ""
    unit: int = 1
    cache: str = PER_LAYER
    text: str = ""
    entries: tuple[CacheSite, ...] = ()

    @property
    def behind(self) -> tuple[OutputSite | CacheSite, ...]:
        """The choices behind the blocks."""
        return *self.outputs, *self.entries

    @property
    def transformers(self) -> tuple[Transformer, ...]:
        """Every transformer of the model, in graph order."""
        return Transformer(self.tokens, self.protect, self.blocks, self.grid, self.unit), *self.others

    def over(self, transformers: Sequence[Transformer]) -> Plan:
        """The plan with these counts, sites left as they are."""
        first, *others = transformers
        return replace(
            self,
            tokens=first.tokens,
            protect=first.protect,
            blocks=first.blocks,
            grid=first.grid,
            others=tuple(others),
            unit=first.unit,
        )

    def laid_out(self, grid: Sequence[int]) -> Plan:
        """The plan with this grid for every transformer it reduces."""
        reduced, known = self.reduced(), enumerate(self.transformers)
        return self.over([replace(e, grid=tuple(grid)) if n in reduced else e for n, e in known])

    def of(self, transformer: int) -> Plan:
        """What the plan says of one transformer, as the plan of a model that has no other."""
        own = (replace(site, transformer=0) for site in self.sites if site.transformer == transformer)
        return replace(self.over([self.transformers[transformer]]), sites=tuple(own), notes=())

    def reduced(self) -> list[int]:
        """The transformers that have sites."""
        return sorted({site.transformer for site in self.sites})

    def counts(self) -> list[int]:
        """The first transformer's own count, then the tokens behind each of its sites."""
        return [self.tokens, *(site.tokens for site in self.sites if not site.transformer)]

    def arriving(self) -> list[int]:
        """Tokens that reach each site."""
        here = [transformer.tokens for transformer in self.transformers]
        found = []
        for site in self.sites:
            found.append(here[site.transformer])
            if not all_return(self.at(site).returns):
                here[site.transformer] = site.tokens
        return found

    def at(self, site: PlannedSite | None = None) -> Method:
        """The method of a site, its own or the plan's. Raises: MethodError where there is none of the name, or of an option's."""
        from tokenrt.passes import methods

        own = ("", {}) if site is None else (site.method, site.options)
        name, options = inherited(*own, self.method, self.options)
        return methods.get(name).from_options(options)

    def methods(self) -> tuple[str, ...]:
        """The methods of the sites of blocks, in the order they come in; the plan's where it has no such site."""
        return tuple(dict.fromkeys(site.method or self.method for site in self.sites)) or (self.method,)

    def shortened(self) -> str:
        """The outputs that keep the tokens that are left: those asked for, and those that are reduced themselves."""
        return self.short or ",".join(site.output for site in self.outputs)

    @property
    def returns(self) -> Returns:
        """When the tokens that left come back; the method decides, and all methods of one transformer agree.

        Raises: MethodError where there is no such method.
        """
        from tokenrt.passes import methods

        return methods.get(self.methods()[0]).returns

    def spec(self) -> str:
        """The reduction as one line, e.g. reduce{method=tome,sites=0:189;1:181,proportional=true}."""
        sites = ";".join(site.spec() for site in (*self.sites, *self.behind))
        options = "".join(f",{key}={value}" for key, value in sorted(written(self.options).items()))
        return f"reduce{{method={self.method},sites={sites},proportional={str(self.proportional_attention).lower()}{options}}}"

    def as_dict(self) -> dict[str, Any]:
        several = {"transformers": [each.as_dict() for each in self.transformers]} if self.others else {}
        return {
            "method": self.method,
            **self.transformers[0].as_dict(),
            **several,
            **({"protect": self.wanted} if self.wanted else {}),
            **({"multiple_of": self.multiple_of} if self.multiple_of > 1 else {}),
            **({"short": self.short} if self.short else {}),
            **({"cache": self.cache} if self.cache != PER_LAYER else {}),
            **({"text": self.text} if self.text else {}),
            "proportional_attention": self.proportional_attention,
            "options": written(self.options),
            "macs": {"before": self.macs_before, "after": self.macs_after},
            "sites": self._entries(),
            "notes": list(self.notes),
        }

    def _entries(self) -> list[dict[str, Any]]:
        several = bool(self.others)
        return [*(site.as_dict(several) for site in self.sites), *(site.as_dict() for site in self.behind)]

    def to_toml(self) -> str:
        import tomlkit

        document = tomlkit.document()
        document.add(
            tomlkit.comment(
                "tokenrt plan: edit the token counts, delete sites or give one a method of its own, then: tokenrt reduce MODEL "
                "--plan THIS -o OUT"
            )
        )
        own = {} if self.others else self.transformers[0].as_dict()
        also = {
            "protect": self.wanted or None,
            "multiple_of": self.multiple_of if self.multiple_of > 1 else None,
            "short": self.short or None,
            "cache": self.cache if self.cache != PER_LAYER else None,
            "text": self.text or None,
        }
        head = {"method": self.method, **own, **also, "proportional_attention": self.proportional_attention}
        document.update({key: value for key, value in head.items() if value is not None})
        document["options"] = written(self.options)
        document["macs"] = {"before": self.macs_before, "after": self.macs_after}
        if self.others:
            document["transformer"] = entries.tables([each.as_dict() for each in self.transformers])
        document["site"] = entries.tables(self._entries())
        return tomlkit.dumps(document)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan file. Raises: PlanError where an option holds arrays, which it cannot."""
        named = [
            (self.method, self.options),
            *((site.method or self.method, site.options) for site in self.sites),
            *((site.method, site.options) for site in self.behind),
        ]
        for method, key, value in ((method, *item) for method, options in named for item in options.items()):
            if isinstance(value, Mapping):
                raise PlanError(
                    f"option {key!r} of {method} holds arrays, and a plan file names a file: write them with "
                    "numpy.savez and give its path"
                )
        with atomic(path) as temporary:
            temporary.write_text(self.to_toml(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan. Raises: PlanError naming the file, the key and what was expected."""
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as cause:
            raise PlanError(f"cannot read plan {file}: {cause}") from cause
        return cls.parse(text, file)

    @classmethod
    def parse(cls, text: str, file: str | os.PathLike[str]) -> Plan:
        """Read a plan from text; `file` is what messages call it. Raises: PlanError."""
        import tomlkit
        from tomlkit.exceptions import TOMLKitError

        file = Path(file)
        try:
            data = tomlkit.parse(text).unwrap()
        except TOMLKitError as cause:
            raise PlanError(f"cannot read plan {file}: {cause}") from cause
        entries.known(file, "the plan", data, KEYS)
        method = entries.read(file, data, "method", str)
        transformers = entries.transformers(file, data)
        options = entries.read(file, data, "options", dict, {})
        listed = [*enumerate(entries.read(file, data, "site", list, []))]
        sites = [
            entries.site(file, number, entry, len(transformers))
            for number, entry in listed
            if not entries.at_output(entry) and not entries.at_cache(entry)
        ]
        outputs = [
            output_site.read(entry, method, options, f"plan {file}: site {number}")
            for number, entry in listed
            if entries.at_output(entry)
        ]
        caches = [
            cache_site.read(entry, method, options, f"plan {file}: site {number}")
            for number, entry in listed
            if entries.at_cache(entry)
        ]
        macs = entries.read(file, data, "macs", dict, {})
        first = transformers[0]
        return cls(
            method=method,
            tokens=first.tokens,
            protect=first.protect,
            blocks=first.blocks,
            sites=tuple(sites),
            proportional_attention=entries.read(file, data, "proportional_attention", bool),
            options=options,
            macs_before=entries.read(file, macs, "before", int, 0),
            macs_after=entries.read(file, macs, "after", int, 0),
            grid=first.grid,
            unit=first.unit,
            others=tuple(transformers[1:]),
            wanted=entries.read(file, data, "protect", str, ""),
            multiple_of=entries.positive(file, data, "multiple_of"),
            outputs=tuple(outputs),
            entries=tuple(caches),
            short=entries.read(file, data, "short", str, ""),
            cache=cache_of(entries.read(file, data, "cache", str, PER_LAYER), f"plan {file}: cache = "),
            text=entries.read(file, data, "text", str, ""),
        )

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        if self.behind and not self.sites:
            return Group(*self._told_outputs(), self._work(), *self._told_notes())
        chosen = [self.transformers[number] for number in self.reduced()] or [self.transformers[0]]
        on = f"{len(chosen)} of {len(self.transformers)} transformers, " if self.others else ""
        tokens, protected = (
            "/".join(map(str, dict.fromkeys(counts)))
            for counts in ([each.tokens for each in chosen], [each.protect for each in chosen])
        )
        blocks = sum(each.blocks for each in chosen)
        table = Table(
            title=f"plan: {', '.join(self.methods())} on {on}{blocks} blocks, {tokens} tokens ({protected} protected)"
        )
        names = ("block", "where", "tokens in", "tokens out", "removed")
        mixed = any(site.method or site.options for site in self.sites)
        for name in (*["transformer"] * bool(self.others), *names, *["method"] * mixed):
            table.add_column(name, justify="left" if name in ("where", "method") else "right")
        for site, before in zip(self.sites, self.arriving(), strict=True):
            row = (site.block, site.where, before, site.tokens, before - site.tokens)
            by = [" ".join((site.method or self.method, *self._unusual(site)))]
            table.add_row(*map(str, (*[site.transformer] * bool(self.others), *row, *by * mixed)))
        attention = f"proportional attention: {'on' if self.proportional_attention else 'off'}"
        back = [f"tokens that left come back {BACK[self.returns]}"] if self.returns in BACK else []
        return Group(
            table,
            *self._told_outputs(),
            *back,
            self._work(),
            attention,
            *self._told_notes(),
        )

    def _told_notes(self) -> list[str]:
        from rich.markup import escape

        return [escape(f"note: {note}") for note in self.notes]

    def _unusual(self, site: PlannedSite) -> list[str]:
        """The options of a site that are not those of its method by default, as `--set` takes them."""
        method = self.at(site)
        usual, own = type(method)().options(), written(method.options())
        return [f"{key}={value}" for key, value in own.items() if key not in usual or value != usual[key]]

    def _told_outputs(self) -> list[str]:
        """A line for each choice among the tokens of an output, or the entries of a cache."""
        told = [
            f"output {site.output}: {site.tokens} of {site.arriving} tokens stay, chosen by {site.method}"
            for site in self.outputs
        ]
        return told + [
            f"cache of layer {site.layer}: {site.tokens} of {site.arriving} entries, chosen by {site.method}"
            for site in self.entries
        ]

    def _work(self) -> str:
        ratio = f" ({self.macs_after / self.macs_before:.1%})" if self.macs_before else ""
        full, left = self.macs_before / 1e9, self.macs_after / 1e9
        return f"multiply-accumulates per image: {full:.2f} G before, {left:.2f} G after{ratio}"


def cache_of(given: str | None, told: str = "--cache ") -> str:
    """How caches shall hold the tokens, as the user says it. Raises: PlanError."""
    if given is not None and given not in CACHES:
        raise PlanError(f"{told}{given}: expected {' or '.join(CACHES)}")
    return given or PER_LAYER


def all_return(when: Returns) -> bool:
    """Whether every site starts from all tokens."""
    return when in ("after-attention", "before-next-site")


def places(when: Returns) -> tuple[Where, ...]:
    """Where a method whose tokens come back at `when` can sit, the usual place first."""
    if when == "from-last-step":
        return (BEFORE,)
    return PLACES[:1] if when == "after-attention" else PLACES[1:]
