"""Fit a plan to a model: from a budget, or one that was made before and perhaps edited; and what it costs."""

from tokenrt.passes.planning.fit.budgeted import make
from tokenrt.passes.planning.fit.cost import with_cost
from tokenrt.passes.planning.fit.edited import checked
from tokenrt.passes.planning.fit.terms import bare, check_tokens, counts

__all__ = ["bare", "check_tokens", "checked", "counts", "make", "with_cost"]
