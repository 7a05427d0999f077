"""Texts as a model's input: the lines of a file, cut into tokens by the tokenizer beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenrt.errors import DependencyError, TokenrtError
from tokenrt.passes.checking.inputs import Array, Input

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
PARTS = {"position": None, "mask": "attention_mask", "type": "type_ids", "segment": "type_ids", "ids": "ids"}
"""What of a text an input holds, by a part of its name; the first that fits."""


def read(inputs: Sequence[Input], path: Path) -> tuple[dict[str, Array], str]:
    """Arrays [lines,N] by input, and where they are from in a few words.

    Empty lines are left out; lines of more than N tokens are cut, shorter ones padded and masked. Raises: TokenrtError,
    DependencyError.
    """
    lengths = {item.dims[1] if len(item.dims) == 2 else None for item in inputs}
    held = {item.name: _part(item) for item in inputs}
    if len(lengths) != 1 or None in lengths or None in held.values():
        told = ", ".join(map(str, inputs))
        raise TokenrtError(
            f"data {path}: texts serve inputs [B,N] of token ids, with a mask and types perhaps, and N fixed; this has {told}: "
            "use an .npz, or fix N with --shape when exporting"
        )
    (length,) = lengths
    assert length is not None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise TokenrtError(f"data {path}: not a readable UTF-8 text: {cause}") from cause
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise TokenrtError(f"data {path}: no line of it holds a text")
    encoded = _tokenizer(path.parent / TOKENIZER, length).encode_batch(texts)
    cut = sum(bool(each.overflowing) for each in encoded)
    rows = {
        item.name: np.array([getattr(e, str(held[item.name])) for e in encoded], item.dtype)
        for item in inputs
    }
    notes = [f"{len(lines) - len(texts)} empty lines left out"] * (len(lines) > len(texts))
    notes += [f"{cut} cut to {length} tokens"] * bool(cut)
    return rows, f"{len(texts)} texts of {path.name}" + (f" ({', '.join(notes)})" if notes else "")


def pieces(path: Path, length: int, most: int) -> list[list[str]]:
    """The tokens of the first `most` texts as the tokenizer writes them, `length` of each.

    Raises: TokenrtError, DependencyError.
    """
    texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [each.tokens for each in _tokenizer(path.parent / TOKENIZER, length).encode_batch(texts[:most])]


def _part(item: Input) -> str | None:
    if item.dtype.kind not in "iu":
        return None
    return next((held for part, held in PARTS.items() if part in item.name.lower()), None)


def _tokenizer(path: Path, length: int) -> Tokenizer:
    """The tokenizer of a file, which pads and cuts to so many tokens. Raises: TokenrtError, DependencyError."""
    try:
        from tokenizers import Tokenizer
    except ImportError as cause:
        raise DependencyError("tokenizers", "export", "reading texts") from cause
    if not path.exists():
        raise TokenrtError(
            f"data: texts need the model's {TOKENIZER} beside them, and {path} does not exist: copy it there, or give an .npz"
        )
    try:
        made = Tokenizer.from_file(str(path))
    except Exception as cause:
        raise TokenrtError(f"{path} is no tokenizer: {cause}") from cause
    pad = next((token for token in ("[PAD]", "<pad>") if made.token_to_id(token) is not None), None)
    made.enable_padding(
        length=length, pad_id=0 if pad is None else made.token_to_id(pad), pad_token=pad or ""
    )
    made.enable_truncation(length)
    return made
