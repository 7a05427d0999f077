"""Outputs that hold tokens: which tokens their rows are made of, and how far up a choice among them moves."""
