"""Keyformer: as H2O, of scores that noise keeps from settling early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokenrt.errors import MethodError, PlanError
from tokenrt.passes.methods.contract import Entries, Evidence, Ops, Site
from tokenrt.passes.methods.parts import cache, steps
from tokenrt.passes.methods.parts.cache import CacheMethod, CacheTaps

NONE, INPUT, CALL = "none", "input", "call"


@dataclass(frozen=True)
class Keyformer(CacheMethod):
    """Keep the last floor(recent K) entries, and of those before the best by softmax((z + g) / tau), added up over all who asked.

    z are the scaled logits under their mask, g noise drawn from Gumbel's distribution, an input [B,A,Q,N] of the model, or none.
    tau = start + step * call rises from call to call; a model has that of one call, or takes it as the input temperature [B,1] of
    each layer (temperature=input), which the host raises. Sums go on as in h2o, by the state score [B,H,K].
    form=mask, as released: the window counts the token to come, so that one less is kept of those that are there, and the entry
    before the window is never among the best; form=drop keeps K.
    Options: recent, a share of K (with form=mask of K + 1); start and step of tau; call, how many calls went before; temperature:
    call or input; noise: none or input; form; heads.
    """

    name: ClassVar[str] = "keyformer"
    summary: ClassVar[str] = "keep the entries with the most noisy attention so far, and the latest"
    paper: ClassVar[str] = (
        "Adnan et al., Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative Inference, MLSys 2024"
    )
    reads: ClassVar[tuple[str, ...]] = ("queries", "keys", "noise", "temperature", "state")
    evidence: ClassVar[Evidence] = "vectors"
    systems: ClassVar[tuple[str, ...]] = ("Keyformer",)
    deviations: ClassVar[str] = (
        "without noise unless the model is given some: what is drawn inside a graph could not be repeated"
    )

    recent: float = 0.3
    start: float = 1.0
    step: float = 0.01
    call: int = 0
    temperature: str = CALL
    noise: str = NONE
    form: str = cache.DROP

    def __post_init__(self) -> None:
        super().__post_init__()
        steps.at_least(self.name, "call", self.call, 0)
        steps.choice(self.name, "temperature", self.temperature, (CALL, INPUT))
        steps.choice(self.name, "noise", self.noise, (NONE, INPUT))
        steps.choice(self.name, "form", self.form, cache.FORMS)
        if not 0 <= self.recent < 1:
            raise MethodError(
                f"option recent={self.recent} of method {self.name!r}: expected 0 to less than 1"
            )
        if not (self.start > 0 and self.step >= 0):
            raise MethodError(
                f"options start={self.start} and step={self.step} of method {self.name!r}: expected more than 0, and 0 or more"
            )

    def choose(self, op: Ops, taps: CacheTaps, site: Site) -> Entries:
        masked = self.form == cache.MASK
        latest = int((site.keep + masked) * self.recent)
        if latest >= site.keep + masked:
            raise PlanError(f"{self.name}: {latest} recent entries leave none of {site.keep} for others")
        logits = taps.logits()
        if self.noise == INPUT:
            logits = op("Add", logits, taps.noise())
        if self.temperature == INPUT:
            logits = op("Div", logits, op("Reshape", taps.temperature(), np.array([-1, 1, 1, 1])))
        else:
            logits = op("Mul", logits, 1 / (self.start + self.step * self.call))
        share = op("Softmax", logits, axis=-1)
        score = self.by_head(op, cache.received(op, taps, site, share), site)
        return cache.heavy(op, taps, site, score, self.lists(site), latest, masked=masked)
