"""A relation of who sees whom: whether everybody reaches everybody, and in words what it keeps apart."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.analysis.attention import Array

LEAK = "a merged or moved token would let tokens see what they do not see in the model"


def connected(relation: Array) -> bool:
    """Whether everybody is reached from everybody, in any number of steps."""
    return not len(relation) or all(_reached(each) for each in (relation, relation.T))


def told_to_all(relation: Array, token: int) -> bool:
    """Whether everybody learns of a token, in any number of steps; relation [N,N]: who (row) sees whom."""
    return bool(_reached_from(relation.T, token).all())


def _reached(relation: Array) -> bool:
    return bool(_reached_from(relation, 0).all())


def _reached_from(relation: Array, start: int) -> Array:
    known = np.zeros(len(relation), np.bool_)
    known[start] = True
    new = known
    while new.any():
        found = relation[new].any(axis=0) & ~known
        known, new = known | found, found
    return known


def describe(relation: Array, first: int) -> str:
    """What a mask that keeps tokens apart does, in words; `first`: the position of its first token."""
    tokens = len(relation)
    later = np.triu(relation, 1)
    edge = int(np.flatnonzero(later.any(axis=0)).max(initial=-1)) + 1
    row = next(row for row in range(tokens) if not relation[row].all())
    blind = int(np.flatnonzero(~relation[row]).min())
    sees = f"token {first + row} sees {_spans(np.flatnonzero(relation[row]) + first)} but not {first + blind}"
    frame = _frame(relation)
    if not later.any():
        return f"its mask is causal ({sees}): {LEAK}"
    if frame is not None:
        return f"its mask is causal over frames of {frame} tokens ({sees}): {LEAK}"
    if edge < tokens:
        return (
            f"its mask is causal behind a prefix of {first + edge} tokens ({sees}): {LEAK}; tokens of the prefix can "
            f"leave with all others protected: --protect {first + edge}:"
        )
    groups = _groups(relation)
    if groups > 1:
        return (
            f"its mask keeps {groups} groups of tokens (windows, frames or pictures) apart ({sees}): {LEAK}"
        )
    return f"its mask lets some tokens see others that never see them ({sees}): {LEAK}"


def _spans(places: Array) -> str:
    """Positions as text: 0 to 3, 7."""
    if not len(places):
        return "nothing"
    cuts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    texts = [f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in cuts]
    return ", ".join([*texts[:2], *(["others"] if len(texts) > 2 else [])])


def _frame(relation: Array) -> int | None:
    """The length of equal frames of which each sees itself and those before it."""
    length = int(np.argmin(relation[0])) if not relation[0].all() else len(relation)
    if not 1 < length < len(relation):
        return None
    frame = np.arange(len(relation)) // length
    return length if (relation == (frame[None] <= frame[:, None])).all() else None


def _groups(relation: Array) -> int:
    """Groups of tokens between which nobody sees anybody."""
    both, left, count = relation | relation.T, np.ones(len(relation), np.bool_), 0
    while left.any():
        new = np.zeros_like(left)
        new[np.argmax(left)] = True
        while new.any():
            left = left & ~new
            new = both[new].any(axis=0) & left
        count += 1
    return count
