"""Parts of the bodies of operators that choose one token a turn.

A token chosen at turn t has the key -t, a protected one the largest, all others less than any turn's. The parts read what
the bodies have named: keep, protect, order, power, mix, last, one, nothing, whole, most.
"""

from tokenrt.passes.ops.token_select import ORDERED

RATED = """
    missing = IsNaN (importance)
    known = Where (missing, nothing, importance)
    positive = Max (known, nothing)
    rated = Min (positive, most)
    is_flat = Equal (power, nothing)
    raised = Pow (rated, power)
    weight = Where (is_flat, whole, raised)
    bonus = Mul (rated, mix)
"""
"""importance [B,N] -> rated [B,N], 0 to `most`; weight, its power; bonus, what it adds to a gain."""

CHOSEN = (
    """
    keys = GatherElements <axis = 1> (key_end, every)
    key_sorted, best = TopK <axis = 1> (keys, keep)
"""
    + ORDERED
)
"""key_end [B,N], every [B,N] (all positions) -> index [B,K]: protected first, then by turn or by position."""
