"""Methods inside language models: what is kept by recorded attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, equal
from tokenrt import apply_method


def check_fastv(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Image tokens, and with the text around them the tokens of the whole prompt."""
    start, tokens = params["vis_start"], params["vis_len"]
    row = arrays["last_row_attn"]
    given = {"x": np.zeros((1, tokens, 2), np.float32), "last_attn": row[:, :, start : start + tokens]}
    kept = apply_method("fastv", given, keep=params["K"], protect=0, backend=backend)["index"][0]
    equal("kept", kept, arrays["keep_idx"][0])
    text = [*range(start)], [*range(start + tokens, row.shape[2])]
    equal("kept of the prompt", np.concatenate([text[0], kept + start, text[1]]), arrays["keep_seq_idx"][0])


CHECKS: Mapping[str, Check] = {"fastv": check_fastv}
