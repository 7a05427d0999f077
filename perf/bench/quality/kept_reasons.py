"""Why a method's rows can stand for all less well than as many drawn at random: what is said, and how it is tested."""

from __future__ import annotations

from tokenrt.perf.bench.quality.kept_measures import Reason

_ATTENDED = (
    "diffrate", "ltmp", "evit", "gtp", "pomt", "zerotprune", "kmedoids", "attncolsum", "fopru", "hiprune", "holov",
    "vispruner",
)  # fmt: skip
_MOST_ATTENDED = ("topk", "fastervlm", "globalcom2", "hired")
_FAR_OUT = ("cosine", "geoprune", "todre", "rate", "prumerge")
_FEW_KINDS = ("ats", "topvim", "dart")
_MEANS = ("m3", "tokenflex", "mustdrop")
_JOINED = ("bat", "token_transforming")
_FAR = "they lie farther from the mean of all than those of `random`"
_ALIKE = "each is more like another one than those of `random` are"

REASONS = (
    Reason(
        (*_ATTENDED, *_MOST_ATTENDED, "scope", "visionzip", "vflowopt"),
        ("mean",),
        "what they keep is what attention falls on, and the mean of that is another",
        "compared with the mean in which tokens count by attention, they are not worse",
        "mean_attended",
    ),
    Reason(
        ("divprune", "atc", "dpcknn", "token_pooling", "mustdrop", *_JOINED),
        ("mean",),
        "of tokens alike they leave one row, be they few or many, and a plain mean counts it once",
        "counted as often as tokens come back as them, the rows have a mean that is not worse",
        "mean_counted",
    ),
    Reason(
        (*_FAR_OUT, "avit"),
        ("mean",),
        "they look for tokens that stand out, and `avit` takes for a gate a channel that no training has made one; these rows "
        "lie far out, and not evenly",
        _FAR,
        "apart",
        there=True,
    ),
    Reason(
        _FEW_KINDS,
        ("mean",),
        "the rows that they keep are like one another, so that a few kinds of token make up the mean",
        _ALIKE,
        "alike",
        there=True,
    ),
    Reason(
        (*_ATTENDED, "token_transforming"),
        ("nearest",),
        "they keep, or share out, what attention falls on, and where it does not fall no row is near",
        "weighed by attention, the tokens are not farther from their nearest",
        "nearest_attended",
    ),
    Reason(
        (*_MOST_ATTENDED, *_FEW_KINDS, "avit"),
        ("nearest",),
        "the rows that they keep are like one another, and the rest of the picture has none that is near",
        _ALIKE,
        "alike",
        there=True,
    ),
    Reason(
        (*_FAR_OUT, "visionzip", "vflowopt"),
        ("nearest",),
        "the rows that are left lie far out, and so near to few tokens",
        _FAR,
        "apart",
        there=True,
    ),
    Reason(
        _MEANS,
        ("nearest",),
        "their rows are means of squares of the grid, and means of whatever lies there are more alike than tokens",
        _ALIKE,
        "alike",
        there=True,
    ),
    Reason(
        _JOINED,
        ("map",),
        "tokens come back as the row that they were joined to, which need not be the nearest",
        "with the nearest instead, the map is not worse",
        "map_nearest",
    ),
    Reason(
        (*_ATTENDED, *_MOST_ATTENDED, *_FAR_OUT, *_FEW_KINDS, *_MEANS, "avit", "visionzip", "vflowopt"),
        ("map",),
        "many positions get a row that is not near what was there",
        "the distance of every token from its nearest is larger than for `random`",
        "nearest",
        there=True,
    ),
)  # fmt: skip
"""Each was chosen after a look at the tables; the pages say where its test fails."""
