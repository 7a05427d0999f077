"""What every plan must keep to in one transformer, and how messages say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tokenrt.errors import PlanError
from tokenrt.passes.analysis.prepare import Prepared
from tokenrt.passes.analysis.protected import free, words
from tokenrt.passes.analysis.structure import Block, Structure
from tokenrt.passes.methods.contract import Method
from tokenrt.passes.planning.plan import BACK, Budget, Plan, Transformer, Where
from tokenrt.passes.planning.route import closed, cut

WORDS = frozenset({"text", "text_attention", "text_neurons"})
"""What methods read of words."""


def counts(structure: Structure, grid: tuple[int, ...] | None, unit: int = 1) -> Transformer:
    """What a plan says of a transformer."""
    return Transformer(structure.tokens, structure.protect, len(structure.blocks), grid, unit)


def bare(prepared: Prepared, method: Method, budget: Budget, notes: Sequence[str] = ()) -> Plan:
    """A plan in which no token leaves inside a transformer."""
    made = Plan(
        method=method.name,
        tokens=0,
        protect=0,
        blocks=0,
        sites=(),
        proportional_attention=False,
        options=method.options(),
        multiple_of=budget.multiple_of,
        notes=tuple(notes),
    )
    return made.over([counts(each, each.grid) for each in prepared.transformers or (prepared.structure,)])


def check_free(structure: Structure) -> None:
    """Whether the tokens that the user protects are there, and others beside them. Raises: PlanError."""
    if not structure.fits:
        raise PlanError(
            f"--protect: positions must lie among the {structure.tokens} tokens, 0 to {structure.tokens - 1}"
        )
    if structure.protect == structure.tokens:
        why = "; ".join(map(str, structure.guards))
        raise PlanError(f"all {structure.tokens} tokens are protected, none can leave ({why})")


def check_tokens(method: Method) -> None:
    """Whether a method reduces tokens. Raises: PlanError for one that chooses entries of a cache."""
    if method.home == "cache":
        raise PlanError(
            f"{method.name} chooses entries of a language model's cache: it sits there (--site cache), and not behind a "
            "block or at an output"
        )


def check_together(structure: Structure) -> None:
    """Whether the tokens that may leave stand together, as those have to that keep their order. Raises: PlanError."""
    places = free(structure.protected, structure.tokens)
    if len(places) and places[-1] - places[0] >= len(places):
        between = sorted({*range(places[0], places[-1])} - {*places.tolist()})
        raise PlanError(
            f"under a mask that tells tokens apart, as a causal one, those that may leave must stand "
            f"together: token {between[0]} among them is protected; name one stretch of them with --span S:E"
        )


def check_ordered(structure: Structure, made: Sequence[Method], plan: Plan) -> None:
    """Whether methods can do what the plan says where tokens keep their order, and read the words it names. Raises: PlanError."""
    merging = next((method for method in made if method.joins), None)
    if plan.proportional_attention and merging is not None:
        raise PlanError(
            f"--proportional-attention: where a mask tells tokens apart, what {merging.name} merges counts as one token; drop it"
        )
    holes = next((method for method in made if method.empties), None)
    if holes is not None and structure.cached:
        raise PlanError(
            f"{holes.name} may leave outputs of no token, padding, and the model hands on caches, in which the next token would "
            "attend to them: export the model without caches, or use a method that selects, e.g. fastv"
        )
    if plan.text:
        if not any(WORDS & {*method.reads} for method in made):
            raise PlanError(f"--text {plan.text}: {made[0].name} reads no words of the prompt; drop it")
        words(plan.text, structure.protected, structure.tokens)


def named(prepared: Prepared, number: int) -> str:
    """How messages begin that are about one transformer of several."""
    return f"transformer {number}: " if len(prepared.transformers) > 1 else ""


@contextmanager
def about(told: str) -> Iterator[None]:
    """Let a PlanError say which transformer it is about."""
    try:
        yield
    except PlanError as cause:
        raise PlanError(f"{told}{cause}") from cause


def way(method: Method) -> str:
    """What becomes of the tokens a method removes."""
    return f"come back {BACK[method.returns]}" if method.returns in BACK else "stay away"


def no_place(block: Block, where: Where, method: Method) -> str:
    instead = "; use --site after-block" if where == "after-attention" and cut(block, where) is None else ""
    return f"no place {where}: {closed(block, where, method)}{instead}"
