"""ALGM: merge alike windows of the grid first, alike tokens anywhere later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import bipartite, scores, steps, windows


@dataclass(frozen=True)
class ALGM(Method):
    """Local step: the windows whose tokens are most alike become one token each. Global step: ToMe on tokens.

    Alike is the mean cosine of all pairs of different tokens of a window; windows are h x w cells of the grid that
    do not overlap, cells beyond the last complete window stay. Tokens are compared by themselves, not by keys, and
    merged by size-weighted mean, at the place of the window's last token. Output order of the local step: protected,
    merged windows by descending likeness, all others ascending; of the global step: ToMe's.
    Options: stage: local, global, or auto: local where the grid is known (so at the first site), the number
    removed is a multiple of h*w - 1 and there are as many windows, else global; height h and width w; variant:
    whether attention counts a merged token by its size (paper) or as one (reference).
    """

    name: ClassVar[str] = "algm"
    summary: ClassVar[str] = (
        "merge alike windows of the grid in an early block, alike tokens anywhere in a later one"
    )
    paper: ClassVar[str] = "Norouzi et al., ALGM: Adaptive Local-then-Global Token Merging, CVPR 2024"
    reads: ClassVar[tuple[str, ...]] = ("tokens", "grid")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("ALGM",)
    merges: ClassVar[bool] = True
    quota: ClassVar[str] = (
        "fixed numbers of merged windows and pairs in place of thresholds on their similarity"
    )
    deviations: ClassVar[str] = (
        "variant=reference: attention ignores the sizes, as released; variant=paper: it is proportional"
    )

    stage: str = "auto"
    height: int = 2
    width: int = 2
    variant: str = scores.PAPER

    def __post_init__(self) -> None:
        steps.choice(self.name, "variant", self.variant, scores.VARIANTS)
        steps.choice(self.name, "stage", self.stage, ("auto", "local", "global"))
        if min(self.height, self.width) < 1 or self.cells < 2:
            raise MethodError(
                f"options height={self.height}, width={self.width} of method {self.name!r}: expected a window of at least "
                "two tokens"
            )

    @property
    def proportional(self) -> bool:
        return self.variant == scores.PAPER

    @property
    def cells(self) -> int:
        return self.height * self.width

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        if self.stage == "local" or (self.stage == "auto" and site.grid is not None):
            table = windows.windows(self, site, self.height, self.width)
            merge, rest = divmod(site.removed, self.cells - 1)
            if rest == 0 and merge <= len(table):
                chosen = op(
                    "TokenSelect",
                    windows.likeness(op, steps.float_tokens(op, taps), table),
                    keep=merge,
                    protect=0,
                    order=1,
                )
                pairs = windows.shared(
                    op, taps.tokens, table, chosen, merge, site, place=-1, behind=site.protect
                )
                return bipartite.merged(op, taps, site, pairs)
            if self.stage == "local":
                raise windows.misfit(self, table, site)
        metric = scores.apart(op, taps, steps.float_tokens(op, taps))
        return bipartite.merged(op, taps, site, bipartite.match_halves(op, metric, site))

    def fewest(self, tokens: int, protect: int) -> int:
        free = tokens - protect
        return tokens - (free // self.cells * (self.cells - 1) if self.stage == "local" else free // 2)
