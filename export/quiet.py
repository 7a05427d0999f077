"""Keeping what torch, timm and transformers print while they work away from the user's screen."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, loggers, progress bars, prints, and standard output down to its descriptor.

    The descriptor too, because the TorchScript exporter dumps graphs there from C++. A rich progress display
    of the caller goes on.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    kept = os.dup(1)
    with ExitStack() as stack:
        stack.callback(logging.disable, disabled)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 1)
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(_Sink(sys.stdout)))
        stack.enter_context(redirect_stderr(_Sink(sys.stderr)))
        yield


class _Sink(io.TextIOBase):
    """Swallows text, and shows rich the stream it stands for, by the attribute rich's own proxies have."""

    def __init__(self, stream: object) -> None:
        self.rich_proxied_file = getattr(stream, "rich_proxied_file", stream)

    def write(self, text: str, /) -> int:
        return len(text)
