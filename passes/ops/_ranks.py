"""Ranks and places by counting, for bodies for GPUs: comparing all with all fuses there, and a sort does not.

Both read `first_is_earlier` [N,N], where the position of the column is smaller than that of the row, and the constants
`middle` [1] and `last` [-1].
"""

from __future__ import annotations


def counted(rows: str, columns: str) -> str:
    """Rank [B,N]: how many score more, and of those that score the same, how many stand before; rows [B,1,N], columns [B,N,1]."""
    return f"""
    is_higher = Greater ({rows}, {columns})
    is_equal = Equal ({rows}, {columns})
    is_tie = And (is_equal, first_is_earlier)
    is_before = Or (is_higher, is_tie)
    before = Cast <to = 1> (is_before)
    rank = ReduceSum <keepdims = 0> (before, last)
"""


PLACED = """
    stays_rows = Unsqueeze (stays, middle)
    is_ahead = And (stays_rows, first_is_earlier)
    ahead = Cast <to = 1> (is_ahead)
    by_position = ReduceSum <keepdims = 0> (ahead, last)
"""
"""stays [B,N] -> by_position [B,N]: how many of those that stay stand before."""
