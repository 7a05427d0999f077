"""ATC: merge tokens by agglomerative clustering of their keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenrt.passes.methods.contract import Evidence, Method, Ops, Reduction, Site, Taps
from tokenrt.passes.methods.parts import clusters, steps

LINKAGES = {"single": 0, "complete": 1, "average": 2}


@dataclass(frozen=True)
class ATC(Method):
    """Merge the two most similar clusters until K are left, and replace each by its size-weighted mean.

    Distance of tokens is 1 - cosine of their mean keys; a cluster's output stands where its first token stood, in
    ascending position (the release numbers clusters as its library happens to). Equal distances: the pair with the
    smaller first position, then the smaller second.
    Options: linkage, the distance of clusters: single (their nearest tokens), complete (farthest), average.
    """

    name: ClassVar[str] = "atc"
    summary: ClassVar[str] = "merge tokens by agglomerative clustering of their mean keys"
    paper: ClassVar[str] = "Haurum et al., Agglomerative Token Clustering, ECCV 2024"
    reads: ClassVar[tuple[str, ...]] = ("metric",)
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("ATC",)
    merges: ClassVar[bool] = True

    deviations: ClassVar[str] = (
        "the release's form for self-supervised models counts the class token among the clusters, so R leaves N - R + 1; "
        "here K is what is left, in every form"
    )

    linkage: str = "average"

    def __post_init__(self) -> None:
        steps.choice(self.name, "linkage", self.linkage, tuple(LINKAGES))

    def reduce(self, op: Ops, taps: Taps, site: Site) -> Reduction:
        center, assign = op(
            "TokenCluster",
            steps.free(op, taps.metric(), site),
            keep=clusters.outputs(site),
            remove=site.removed,
            linkage=LINKAGES[self.linkage],
        )
        return clusters.merged(op, taps, site, center, assign)
