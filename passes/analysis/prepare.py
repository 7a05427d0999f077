"""Load, canonicalize and analyse a model: the common start of inspect, plan and reduce."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.passes.analysis.blocks import find
from tokenrt.passes.analysis.protected import parse, text
from tokenrt.passes.analysis.refused.enclosed import refused
from tokenrt.passes.analysis.residual import Refusal
from tokenrt.passes.analysis.structure import NOTHING, Structure
from tokenrt.passes.graph.canonicalize import Axes, Canonicalize, parse_shapes
from tokenrt.passes.graph.interface import Interface
from tokenrt.passes.graph.model import ModelLike, load
from tokenrt.passes.graph.shapes import Shapes, annotate, infer

Protect = str | Sequence[int] | None
ShapeOption = Mapping[str, Axes] | Iterable[str] | None


@dataclass(frozen=True)
class Prepared:
    """A canonical copy of a model and what the analyses found in it: its transformers, and what was refused.

    interface: the inputs and outputs of the model as it was given. protect: the tokens that the user protects, as text.
    """

    model: ir.Model
    shapes: Shapes
    transformers: tuple[Structure, ...]
    refusals: tuple[Refusal, ...]
    passes: tuple[str, ...]
    interface: Interface
    protect: str = ""

    @property
    def structure(self) -> Structure:
        """The first transformer, with no block where there is none."""
        return self.transformers[0] if self.transformers else NOTHING

    def again(self, protect: str) -> Prepared:
        """The same of a copy that can be changed, with other protected tokens perhaps; weights are shared. Raises: PlanError."""
        return _analysed(self.model.clone(), self.shapes, self.passes, self.interface, protect)

    def candidates(self) -> int:
        """Attentions that are a block or were refused as one."""
        blocks = sum(not block.apart for structure in self.transformers for block in structure.blocks)
        return blocks + sum(refusal.where.startswith("attention at") for refusal in self.refusals)


def prepare(model: ModelLike, shape: ShapeOption = None, protect: Protect = None) -> Prepared:
    """Analyse a model; the caller's file or object stays as it is.

    shape: `--shape` pairs as text or a mapping of input names to axes. protect: tokens that never leave, as `0,-1,200:217` or
    their positions. Raises: ModelError, ShapeError, PlanError.
    """
    protect = text(protect)
    shapes_wanted = dict(shape) if isinstance(shape, Mapping) else parse_shapes(shape or ())
    canonicalize = Canonicalize(shapes_wanted)
    given = load(model)
    interface = Interface.of(given)
    canonical = canonicalize(given)
    shapes = infer(canonical)
    annotate(canonical.graph, shapes)
    return _analysed(canonical, shapes, (canonicalize.spec(),), interface, protect)


def _analysed(
    canonical: ir.Model, shapes: Shapes, passes: tuple[str, ...], interface: Interface, protect: str
) -> Prepared:
    found = find(canonical.graph, shapes, parse(protect))
    refusals = refused(canonical.graph, found.refusals)
    return Prepared(canonical, shapes, found.transformers, refusals, passes, interface, protect)
