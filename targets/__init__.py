"""Devices an engine is built for, and the builders."""

from tokenrt._callable import make_callable
from tokenrt.targets.profiles.facts import Fact
from tokenrt.targets.profiles.profile import Target, load, targets

__all__ = ["Fact", "Target", "load", "targets"]

make_callable(__name__, "targets")
