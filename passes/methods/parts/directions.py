"""Vectors drawn at random: constants of the graph from a seed, so that every engine chooses alike, or from a file."""

from __future__ import annotations

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Site
from tokenrt.passes.methods.parts.weights import Trained
from tokenrt.passes.ops.contract import Array


def gaussian(method: Trained, name: str, count: int, seed: int, site: Site) -> Array:
    """`count` normally distributed vectors [count,C], or the tensor `name` of the method's weights where it has a file.

    Raises: MethodError where the file has them of another shape, or C is unknown.
    """
    if site.channels is None:
        raise MethodError(f"method {method.name!r} needs to know how many channels the tokens have")
    if method.weights is None:
        return np.random.default_rng(seed).standard_normal((count, site.channels)).astype(np.float32)
    drawn = method.tensor(name, site)
    method.check(name, drawn, (count, site.channels))
    return drawn
