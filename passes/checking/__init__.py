"""Comparing models by running them: the data, the runs, what drifts, and what two forms choose."""
