"""When an engine that is there already is the engine asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def key(parts: Mapping[str, Any]) -> str:
    """Names an engine by everything that goes into it: model bytes, target, options, versions."""
    text = json.dumps(parts, sort_keys=True, default=str, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(*paths: Path) -> str:
    """Of the bytes of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def code() -> str:
    """Of the code that gives a model the form a target wants: the bodies of the operators, and what chooses and rewrites them."""
    from tokenrt.passes import forms, ops

    folders = (Path(str(package.__file__)).parent for package in (forms, ops))
    return sha256(*(file for folder in folders for file in sorted(folder.glob("*.py"))))


def manifest(engine: Path) -> Path:
    """Where the manifest of an engine is."""
    return engine.with_name(engine.name + ".json")


def find(wanted: str, places: list[Path]) -> Path | None:
    """The first of the engines at `places` that is whole and was built from just these parts."""
    for engine in places:
        try:
            told = json.loads(manifest(engine).read_text(encoding="utf-8"))
            if told["key"] == wanted and told["engine_sha256"] == sha256(engine):
                return engine
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
