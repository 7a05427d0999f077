"""Architectures that `inspect` knows by what their graphs do."""
