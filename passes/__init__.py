"""Compiler passes: canonicalize, find the blocks, follow the token axis, plan, rewrite, prove."""
