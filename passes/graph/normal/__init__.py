"""The one form of an attention: Einsum, other layouts, split sums and their like, rewritten to what the analyses read."""
