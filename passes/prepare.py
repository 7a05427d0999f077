"""Load, canonicalize and analyse a model: the common start of inspect, plan and reduce."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.passes.blocks import Structure, find
from tokenrt.passes.canonicalize import Axes, Canonicalize, parse_shapes
from tokenrt.passes.model import ModelLike, load
from tokenrt.passes.rewrite import annotate
from tokenrt.passes.shapes import Shapes, infer

ShapeOption = Mapping[str, Axes] | Iterable[str] | None


@dataclass(frozen=True)
class Prepared:
    """A canonical copy of a model and what the analyses found in it."""

    model: ir.Model
    shapes: Shapes
    structure: Structure
    passes: tuple[str, ...]


def prepare(model: ModelLike, shape: ShapeOption = None) -> Prepared:
    """Analyse a model; the caller's file or object stays as it is.

    shape: `--shape` pairs as text or a mapping of input names to axes. Raises: ModelError, ShapeError.
    """
    shapes_wanted = dict(shape) if isinstance(shape, Mapping) else parse_shapes(shape or ())
    canonicalize = Canonicalize(shapes_wanted)
    canonical = canonicalize(load(model))
    shapes = infer(canonical)
    annotate(canonical.graph, shapes)
    return Prepared(canonical, shapes, find(canonical.graph, shapes), (canonicalize.spec(),))
