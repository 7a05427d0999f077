"""What a method is: how tap, score, assign and combine are filled, written once for every backend.

A method receives `op`, which runs an operator by name. With the NumPy backend the call computes in float64;
with the graph backend the call appends a node. So the same few lines are the reference and the rewrite.

Shape letters: B batch, N tokens in, K tokens out, H heads, D head width, C channels, P protected, T words, G groups,
F neurons; of a cache also Q tokens that ask and A heads of queries, a multiple of H.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from tokenrt.errors import MethodError

Evidence = Literal["vectors", "independent implementation", "mathematics"]
Returns = Literal["never", "after-attention", "before-next-site", "before-last-block", "from-last-step"]
Home = Literal["block", "features", "output", "prefill", "cache", "input", "step"]

Value = Any
"""A NumPy array, or a value of the graph being built; a method never looks inside."""


class Ops(Protocol):
    """Runs an operator: standard ONNX names (opset 13 semantics) and the operators of domain `tokenrt`.

    Inputs are values, Python numbers, lists or NumPy arrays (constants: int64 or float32). The result is one
    value, or a tuple where the operator has several outputs. `CastLike` works at every opset: a backend that
    knows the types writes a Cast or nothing. A number given for a list attribute of a tokenrt operator
    becomes a list of one; the `type` of TokenCombine is filled in.
    """

    def __call__(self, name: str, *inputs: Value, **attributes: Any) -> Any: ...

    def constant(self, array: Any) -> Value:
        """Return a constant as a value."""


@dataclass(frozen=True)
class Site:
    """The constants of one place of reduction, all known when the graph is written."""

    tokens: int
    keep: int
    protect: int
    heads: int
    width: int
    block: int = 0
    blocks: int = 1
    class_token: bool = True
    initial: int | None = None
    grid: tuple[int, ...] | None = None
    """Layout of the unprotected tokens, (h, w) or (frames, h, w), while all are there; None when unknown."""
    channels: int | None = None
    """C, where it is known: trained tensors are checked against it."""
    across: int = 1
    """Rows that lose tokens alike (all frames where places leave): vectors, and heads, are those of all of them side by side."""
    words: int | None = None
    """T, where it is known."""
    gap: int = 0
    """How many other tokens stand between the last one that may leave and the first word."""
    picture: tuple[int, int] | None = None
    """(h, w) of the tap pixels or update, where it is known."""
    packed: int = 0
    """U, where the tap update is no picture but rows [B,N,U] of packed latents."""
    asking: int = 0
    """Q, of a cache: how many tokens, the last ones, have queries."""
    shared: int = 1
    """A / H, of a cache: how many heads of queries share a head of keys."""

    @property
    def removed(self) -> int:
        return self.tokens - self.keep


@runtime_checkable
class Taps(Protocol):
    """What a method may read at a site; every tap but `tokens` is float32 and built only when asked for."""

    @property
    def tokens(self) -> Value:
        """[B,N,C] residual stream, in the model's own type."""

    @property
    def size(self) -> Value | None:
        """[B,N,1] float32: original tokens each token stands for; None while all are one."""

    @property
    def padded(self) -> bool:
        """Whether some tokens may be padding, whose size is 0."""

    @property
    def state(self) -> Mapping[str, Value]:
        """What the method handed on at the site before, by name; empty at its first."""

    def stream(self) -> Value:
        """[B,N,C] what enters the block: the residual stream before its attention and the norm in front of that."""

    def normed(self) -> Value:
        """[B,N,C] what the projections to queries, keys and values read: the normalised block input."""

    def metric(self) -> Value:
        """[B,N,D] keys averaged over heads."""

    def queries(self) -> Value:
        """[B,H,N,D]."""

    def keys(self) -> Value:
        """[B,H,N,D]."""

    def values(self) -> Value:
        """[B,H,N,D]."""

    def attention(self) -> Value:
        """[B,H,N,N] softmax rows, one per query, with all that the model adds to its logits; costs an N x N matrix."""

    def class_attention(self) -> Value:
        """[B,N] attention of the class token (row 0), averaged over heads."""

    def received_attention(self) -> Value:
        """[B,N] attention each token receives, averaged over heads and queries."""

    def last_attention(self) -> Value:
        """[B,N] attention of the prompt's last token that is no padding, averaged over heads, be it one of these or not."""

    def layer(self, role: str, block: int) -> Taps:
        """The taps of these same tokens at another block, which the method reads in this role; negative counts from the end."""

    def text(self) -> Value:
        """[B,T,E] embeddings of the text that comes with the image, an input; in a language model its words as they are here."""

    def text_mask(self) -> Value | None:
        """[B,T] float32, 1 for words and 0 for padding, an input of the model; None where all are words."""

    def quotas(self) -> Value:
        """[B,G] int64: how many tokens of each of G groups (crops, frames) stay, an input of the model."""

    def importance(self) -> Value:
        """[B,N] a score that is computed elsewhere, an input of the model."""

    def pixels(self) -> Value:
        """[B,3,h,w] the picture the tokens were made of, as the model takes it."""

    def projected(self, tokens: Value) -> Value:
        """[B,N,E]: other tokens [B,N,C] in place of these, carried to the output that the tokens are on their way to."""


BEYOND: Mapping[str, str] = {
    "text_attention": "[B,H,T,N] what the T words behind the tokens attend to, softmax rows",
    "text_keys": "[B,H,T,D] the keys of the words behind the tokens, or the text as one head where they have none",
    "neurons": "[B,N,F] the hidden layer of the block's MLP, act(gate) * up",
    "text_neurons": "[B,T,F] the same of the words behind the tokens",
    "segments": "[B,N] int64: the output that each token goes to, an input of the model",
    "update": "[B,U,h,w] what the step before added to the latent picture, or [B,N,U] to packed latents, an input of the model",
}
"""Taps that only some places offer: names and what they give. A place that offers one has a function of that name."""


def beyond(taps: Taps, name: str) -> Value:
    """One of the taps BEYOND. Raises: MethodError where this place does not offer it."""
    offered = getattr(taps, name, None)
    if offered is None:
        raise MethodError(
            f"the method reads {name} {BEYOND[name]}, which this place of the model does not offer"
        )
    return offered()


@dataclass(frozen=True)
class Entries:
    """Which entries of a cache stay: index [B,H,K] int64, ascending, or [B,1,K] where all heads keep the same.

    state: what the next call of the model gives back to the method, for the entries that stay.
    """

    index: Value
    state: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Reduction:
    """What comes out of a site.

    tokens [B,K,C] in their own type; size [B,K,1] float32 or None (all one); position [B,K] int64: the input
    token whose place (rotary table, position bias) each output takes; assign [B,N] int64: the output each
    input token went to, -1 when dropped. Where the choice does not depend on the input, position is [1,K] and
    assign [1,N], both constants. affinity [B,N,K] float32: the rule by which positions are restored where it
    is not a copy along `assign`. state: what the method's next site shall find in `taps.state`. represented: dropped
    tokens come back with what has been added to the last output token since it was made, their representative.
    """

    tokens: Value
    size: Value | None
    position: Value
    assign: Value
    affinity: Value | None = None
    state: Mapping[str, Value] = field(default_factory=dict)
    represented: bool = False


@dataclass(frozen=True)
class Method:
    """Base of all methods; a subclass is a frozen dataclass; its fields are options (`--set name=value`)."""

    name: ClassVar[str]
    family: ClassVar[str]
    """The folder it lies in."""
    summary: ClassVar[str]
    paper: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    """Names of the taps it uses, those of its defaults first; empty: the choice does not depend on the picture."""
    evidence: ClassVar[Evidence]
    merges: ClassVar[bool] = False
    """Outputs are averages weighted by the sizes of their members."""
    drops: ClassVar[bool] = False
    """Some tokens are in no output (-1 in `assign`)."""
    joins: ClassVar[bool] = False
    """Every output is made of the tokens that `assign` sends to it and of no other, so that under a causal mask it can stand at
    the place of the last of them."""
    empties: ClassVar[bool] = False
    """Some outputs may be made of no token: of size 0, and hidden from attention behind it."""
    quota: ClassVar[str] = ""
    """Where the published count depends on the data: what replaces that rule, in a line."""
    needs: ClassVar[Mapping[str, str]] = {}
    """Trained tensors: name -> shape in letters, e.g. {"queries": "M,C"}; see `tokenrt.passes.methods.parts.weights`."""
    returns: ClassVar[Returns] = "never"
    """When the tokens that left come back."""
    home: ClassVar[Home] = "block"
    """Where it is meant to sit: behind a block, at the features that go into a projector, at an output, behind a block under a
    causal mask, in the cache of a language model, at the rows of pixels that go into a model, or in front of the blocks of one
    that is called step by step."""
    pending: ClassVar[str] = ""
    """Why no graph is rewritten by it yet: until then it runs on arrays (`tokenrt.apply_method`), and `reduce` refuses it."""
    layers: ClassVar[tuple[str, ...]] = ()
    """The roles in which it reads other blocks than the site's, see `Taps.layer`."""
    own_queries: ClassVar[bool] = False
    """Given no weights, it keeps the first of the learned queries that the model itself reads a picture with."""
    takes: ClassVar[tuple[str, ...]] = ()
    """Inputs that the model gains: text, text_mask, quotas, importance, segments, update; those it can do without end in "?"."""
    carries: ClassVar[tuple[str, ...]] = ()
    """Numbers [B,N] of all tokens that a call of the model hands to the next, by name; where it is called step by step."""
    ascending: ClassVar[bool] = False
    """With its default options the tokens that stay keep their order, so that a causal mask stays one."""
    engines: ClassVar[Mapping[str, str]] = {}
    """Serving engines that ship it -> the words their users type for it."""
    systems: ClassVar[tuple[str, ...]] = ()
    """Published systems it covers, by the names they go by; "NAME: part" where it covers one of their steps."""
    deviations: ClassVar[str] = ""
    """In a line, where the release departs from its paper (what variant=reference and variant=paper do), or where this
    form departs from both."""

    def __init_subclass__(cls) -> None:
        """Give a method of ours the family of its folder; others name theirs, or inherit one."""
        package, _, family = cls.__module__.rpartition(".")[0].rpartition(".")
        if package == __package__:
            cls.family = family

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        """Reduce N tokens to K at one site; the caller has checked fewest(N, P) <= K < N."""
        raise NotImplementedError

    def fewest(self, tokens: int, protect: int) -> int:
        """The smallest K this method can leave of N tokens in one step."""
        return protect + 1

    def counts(self, site: Site) -> Sequence[int]:
        """The K below N, ascending, that it can leave at a site; its `keep` says nothing. Raises: PlanError, MethodError."""
        least = self.fewest(site.tokens, site.protect)
        return [kept for kept in range(least, site.tokens) if (site.tokens - kept) % self.unit == 0]

    @property
    def selects(self) -> bool:
        """Whether tokens leave for good and no other takes in what they hold, so that those that stay can keep their order."""
        return self.drops and not self.merges and self.returns == "never"

    @property
    def keeps_order(self) -> bool:
        """Whether it can be used where masks keep tokens apart: it selects, or says of what its outputs are made."""
        return self.selects or (self.joins and self.returns == "never")

    @property
    def proportional(self) -> bool:
        """Whether attention is proportional, each key counted by its size, unless the caller says otherwise."""
        return self.merges

    def nearest(self, wanted: int, tokens: int, protect: int, multiple_of: int) -> int | None:
        """The multiple of `multiple_of` nearest to `wanted` that this method can leave of N tokens, protected ones included.

        Of two as near the larger, so that fewer tokens leave; N itself counts where it is a multiple. None where none fits.
        """
        least = -(-self.fewest(tokens, protect) // multiple_of) * multiple_of
        counts = (k for k in range(least, tokens + 1, multiple_of) if (tokens - k) % self.unit == 0)
        return min(counts, key=lambda k: (abs(k - wanted), -k), default=None)

    def after_keeping(self, kept: int, protect: int) -> int:
        """K when `kept` unprotected tokens stay (a method that adds a token counts it here)."""
        return protect + kept

    @property
    def unit(self) -> int:
        """Tokens leave in multiples of it, and `after_keeping` gives such counts: a frame each, for a clip."""
        return 1

    def laid_out(self, grid: tuple[int, ...] | None) -> Method:
        """Return the method for tokens laid out as `grid`, with what follows from it among its options."""
        return self

    def rated(self, survivors: Sequence[int]) -> Method:
        """Return the method told how many tokens survive its pruning at each block, where it also merges."""
        return self

    def options(self) -> dict[str, Any]:
        """Return the options by name; one that is None is one that was not given, and no plan file can say None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Method:
        """Make the method from `--set` pairs; strings are read as the field's type. Raises MethodError."""
        known = {field.name: field for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, raw in options.items():
            if key not in known:
                has = ", ".join(known) or "none"
                raise MethodError(f"method {cls.name!r} has no option {key!r}; its options: {has}")
            values[key] = _read(cls.name, key, raw, type(known[key].default))
        return cls(**values)


def _read(method: str, key: str, raw: Any, kind: type) -> Any:
    if kind is type(None):
        return raw
    if kind is bool and isinstance(raw, str):
        if raw.lower() in {"true", "1", "yes", "on"}:
            return True
        if raw.lower() in {"false", "0", "no", "off"}:
            return False
        raise MethodError(f"option {key}={raw} of method {method!r}: expected true or false")
    refusal = MethodError(f"option {key}={raw} of method {method!r}: expected {kind.__name__}")
    try:
        value = kind(raw)
    except (TypeError, ValueError, OverflowError) as cause:
        raise refusal from cause
    if kind is int and not isinstance(raw, str) and value != raw:
        raise refusal
    return value
