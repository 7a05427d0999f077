"""Outputs with fewer tokens: a choice among the rows of an output itself, and outputs that keep what the blocks leave."""
