"""Plan a choice among the tokens of an output: which output, how many stay, and what the method needs for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokenrt.errors import NothingToDoError, PlanError
from tokenrt.passes import methods
from tokenrt.passes.analysis.outlets.find import Climb, Outlet, as_clip, climb, find, here
from tokenrt.passes.analysis.outlets.queries import Queries, queries
from tokenrt.passes.analysis.prepare import Prepared, ShapeOption
from tokenrt.passes.analysis.protected import parse, resolved
from tokenrt.passes.graph.canonicalize import Axes, parse_shapes
from tokenrt.passes.graph.shapes import BATCH, describe
from tokenrt.passes.methods.contract import Method, Site
from tokenrt.passes.planning import fit
from tokenrt.passes.planning.budget import Budget
from tokenrt.passes.planning.flops import cost
from tokenrt.passes.planning.outputs.site import OUTPUT, OutputSite, check, left
from tokenrt.passes.planning.plan import Plan
from tokenrt.passes.planning.request import Request
from tokenrt.passes.planning.resolve import check_grid


def named(site: str | None) -> str | None:
    """The output that `--site output[:NAME]` names, "" where it names none, and None for another site."""
    if site is None or site.partition(":")[0] != OUTPUT:
        return None
    return site.partition(":")[2]


def split(shape: ShapeOption, method: str) -> tuple[dict[str, Axes], dict[str, Axes]]:
    """The shapes of the model's inputs, and those of inputs that it gains for a method."""
    given = dict(shape) if isinstance(shape, Mapping) else parse_shapes(shape or ())
    own = {name.removesuffix("?") for name in methods.get(method).takes}
    return (
        {name: dims for name, dims in given.items() if name not in own},
        {name: dims for name, dims in given.items() if name in own},
    )


def choose(prepared: Prepared, name: str) -> tuple[Outlet, tuple[Outlet, ...]]:
    """The outlet of that name, or the only one, and those whose tokens are the same ones. Raises: PlanError, NothingToDoError."""
    graph, shapes = prepared.model.graph, prepared.shapes
    every = find(graph, shapes, prepared.transformers)
    listed = ", ".join(f"{value.name} {describe(shapes.of(value))}" for value in graph.outputs)
    if name:
        found = next((outlet for outlet in every if outlet.name == name), None)
        if found is None:
            raise PlanError(
                f"--site output:{name}: no output of that name has a row for each token; outputs: {listed}"
            )
    else:
        sure = [outlet for outlet in every if outlet.groups is not None] or [*every]
        if not sure:
            raise NothingToDoError(f"no output has a row for each token; outputs: {listed}")
        found = sure[0]
        apart = [outlet.name for outlet in sure[1:] if not outlet.beside(found)]
        if apart:
            raise PlanError(
                f"--site output: outputs {', '.join([found.name, *apart])} have token axes of their own; name one, as in "
                f"--site output:{found.name}"
            )
    return found, tuple(outlet for outlet in every if outlet is not found and outlet.beside(found))


def make(
    prepared: Prepared, name: str, budget: Budget, output: str, asked: Request, inputs: Mapping[str, Axes]
) -> Plan:
    """Turn a budget into a plan; inputs: shapes of those that the model gains.

    Raises: PlanError, MethodError, NothingToDoError.
    """
    method = methods.for_graph(name, asked.options or {})
    fit.check_tokens(method)
    outlet = laid_out(prepared, choose(prepared, output)[0], asked.grid)
    if method.returns != "never":
        raise PlanError(
            f"--site output: tokens that {name} removes come back, and behind an output there is nowhere to"
        )
    kept = protected(outlet, asked.kept)
    if kept and learned(prepared, outlet, method) is not None:
        raise PlanError(f"--protect, --span: {name} keeps the first of the model's queries, and no others")
    layout = tuple(asked.grid) if asked.grid is not None else outlet.grid if not kept else None
    if layout is not None:
        check_grid(layout, outlet.tokens - len(kept))
    method = method.laid_out(layout)
    stay, notes = left(budget, method, _rows(outlet, kept, layout))
    base = fit.bare(prepared, method, budget, notes)
    if stay == outlet.tokens:
        if asked.allow_noop:
            return base
        raise NothingToDoError(
            f"the budget removes none of the {stay} tokens of output {outlet.name!r}; ask for more, or pass --allow-noop to "
            "write the model unchanged"
        )
    site = OutputSite(
        outlet.name,
        outlet.tokens,
        stay,
        name,
        method.options(),
        -1 if asked.tap_layer is None else asked.tap_layer,
        asked.kept,
        layout,
        taken(method, outlet, inputs),
    )
    return with_work(prepared, replace(base, outputs=(site,)), outlet)


def _rows(outlet: Outlet, kept: Sequence[int], grid: tuple[int, ...] | None) -> Site:
    """The rows of an output as a method's counts are asked for them."""
    return Site(
        outlet.tokens, 0, len(kept), 1, 1, initial=outlet.tokens, grid=grid, channels=outlet.held.channels
    )


def laid_out(prepared: Prepared, outlet: Outlet, grid: Sequence[int] | None) -> Outlet:
    """The outlet, and where the grid says so its pictures as the frames of one clip."""
    clip = None if grid is None else as_clip(outlet, tuple(grid), prepared.transformers)
    return clip or outlet


def protected(outlet: Outlet, wanted: str) -> list[int]:
    """Rows that never leave: those no token reaches, and those the user names. Raises: PlanError."""
    found = resolved(parse(wanted), outlet.tokens)
    if found is None:
        raise PlanError(
            f"--protect {wanted}: positions must lie among the {outlet.tokens} tokens of output {outlet.name!r}"
        )
    kept = sorted({*found, *outlet.fixed})
    if len(kept) == outlet.tokens:
        raise PlanError(f"all {outlet.tokens} tokens of output {outlet.name!r} are protected, none can leave")
    return kept


def taken(method: Method, outlet: Outlet, shapes: Mapping[str, Axes]) -> dict[str, tuple[int | str, ...]]:
    """The shapes of the inputs that the model gains. Raises: PlanError naming those that must be said."""
    rows = outlet.held.rows
    batch: int | str = "batch" if rows % BATCH == 0 else rows
    found: dict[str, tuple[int | str, ...]] = {}
    for entry in method.takes:
        name = entry.removesuffix("?")
        own = _known(name, method, outlet, batch)
        if name in shapes:
            found[name] = _with_batch(name, shapes[name], batch)
            if own is not None and found[name][1:] != own[1:]:
                raise PlanError(
                    f"--shape {name}={'x'.join(map(str, found[name]))}: {method.name} reads {'x'.join(map(str, own))} here"
                )
        elif own is not None and not entry.endswith("?"):
            found[name] = own
        elif not entry.endswith("?"):
            example = f"{batch}x32x{outlet.held.channels}" if name == "text" else f"{batch}x32"
            raise PlanError(
                f"{method.name} reads the input {name!r}, which the model gains; say its shape with --shape {name}={example}"
            )
    return found


def _with_batch(name: str, dims: Axes, batch: int | str) -> tuple[int | str, ...]:
    """The shape as it was given, its first axis the pictures of the output. Raises: PlanError."""
    free = isinstance(dims[0], str)
    if free != isinstance(batch, str) or (not free and dims[0] != batch):
        pictures = "any number of pictures" if isinstance(batch, str) else f"{batch} pictures"
        told, instead = (
            "x".join(map(str, dims)),
            "x".join(map(str, ("B" if isinstance(batch, str) else batch, *dims[1:]))),
        )
        raise PlanError(f"--shape {name}={told}: the output has {pictures}; say {name}={instead}")
    return batch, *dims[1:]


def _known(name: str, method: Method, outlet: Outlet, batch: int | str) -> tuple[int | str, ...] | None:
    """The shape of an input that needs not be said: a score for each token, a quota for each frame."""
    if name == "importance":
        return batch, outlet.tokens
    return (batch, max(int(method.options().get("frames", 1)), 1)) if name == "quotas" else None


def with_work(prepared: Prepared, plan: Plan, outlet: Outlet) -> Plan:
    """The plan with its work: the choice saves what lies between it and the output."""
    (site,) = plan.outputs
    graph, shapes = prepared.model.graph, prepared.shapes
    method = methods.get(site.method).from_options(site.options)
    asked = learned(prepared, outlet, method)
    flow = asked.flow if asked is not None else place(climb(graph, shapes, outlet), outlet, method).flow
    work = cost(graph, shapes, flow.inputs)
    counts = [site.arriving, site.tokens]
    return replace(plan, macs_before=work.macs([counts[0]] * 2), macs_after=work.macs(counts))


def learned(prepared: Prepared, outlet: Outlet, method: Method) -> Queries | None:
    """The learned queries of which a method keeps the first; None for one that works on rows. Raises: PlanError."""
    if not method.own_queries or "weights" in method.options():
        return None
    found = queries(prepared.model.graph, prepared.shapes, outlet)
    if isinstance(found, str):
        raise PlanError(
            f"output {outlet.name!r}: {found}; {method.name} keeps the first of such queries where every row is one query's "
            "alone, or reads the tokens itself with --set weights=FILE"
        )
    return found


def place(top: Climb, outlet: Outlet, method: type[Method] | Method) -> Climb:
    """Where a method chooses: at the top of the way to an outlet, or at the outlet itself where it reads the rows there."""
    reads_rows = method.home != "features" and ("tokens" in method.reads or method.merges)
    return here(outlet) if reads_rows else top


def checked(prepared: Prepared, site: OutputSite) -> tuple[Outlet, tuple[Outlet, ...], Method]:
    """What a site of a plan, perhaps edited by hand, is of this model. Raises: PlanError, MethodError."""
    outlet, beside = choose(prepared, site.output)
    outlet = laid_out(prepared, outlet, site.grid)
    method = methods.for_graph(site.method, site.options)
    fit.check_tokens(method)
    if method.home == "prefill":
        raise PlanError(
            f"{method.name} works inside a language model's prompt: it sits behind a block (--site after-block), not at an output"
        )
    if outlet.tokens != site.arriving:
        raise PlanError(
            f"the plan is for {site.arriving} tokens of output {site.output!r}, the model has {outlet.tokens} there; make a new "
            "plan for it"
        )
    kept = protected(outlet, site.protect)
    check(method, site.tokens, _rows(outlet, kept, site.grid))
    if site.grid is not None:
        check_grid(site.grid, outlet.tokens - len(kept))
    taken(method, outlet, site.inputs)
    return outlet, beside, method
