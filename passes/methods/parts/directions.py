"""Vectors drawn at random: constants of the graph from a seed, so that every engine chooses alike, or from a file."""

from __future__ import annotations

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Site
from tokenrt.passes.methods.parts.weights import Trained
from tokenrt.passes.ops.contract import Array


def gaussian(count: int, width: int, seed: int) -> Array:
    """`count` normally distributed vectors [count,width]."""
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def of_channels(method: Trained, name: str, count: int, seed: int, site: Site) -> Array:
    """`count` such vectors [count,C], or the tensor `name` of the method's weights where it has a file.

    Raises: MethodError where the file has them of another shape, or C is unknown.
    """
    if site.channels is None:
        raise MethodError(f"method {method.name!r} needs to know how many channels the tokens have")
    if method.weights is None:
        return gaussian(count, site.channels, seed)
    drawn = method.tensor(name, site)
    method.check(name, drawn, (count, site.channels))
    return drawn
