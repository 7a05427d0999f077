"""What every verb shares: `--json`, `--debug`, the error boundary, and a clean standard output.

Exit status: 0 success; 1 a verdict of no (a check that failed), a fault of tokenrt's own, or a failure of the system; 2 what
the caller can mend; 3 a wish that cannot be met; 130 an interrupt.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from typer.core import TyperGroup

from tokenrt.errors import OURS, InternalError, TokenrtError, report

_SHOWN: ContextVar[Callable[[str], None] | None] = ContextVar("shown", default=None)

SILENT = 10.0
"""Seconds between two lines that say what a long verb is doing."""

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130


class Result(Protocol):
    """What a verb returns: JSON for `--json`, a rich renderable otherwise."""

    def as_dict(self) -> dict[str, Any]: ...

    def __rich__(self) -> Any: ...


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", envvar="TOKENRT_DEBUG", help="Show tracebacks.")]


def verb(app: typer.Typer, *, spinner: bool = True) -> Callable[[Callable[..., Result]], None]:
    """Register a function as a verb: its options plus `--json` and `--debug`, its result printed.

    The function returns what is to be printed and raises TokenrtError for what the user can mend. A result
    whose `ok` is false ends the program with status 1, or with that of its `status`.
    """

    def register(function: Callable[..., Result]) -> None:
        @wraps(function)
        def run(*args: Any, json: bool, debug: bool, **kwargs: Any) -> None:
            with _boundary(function.__name__, as_json=json, debug=debug):
                with _stdout_on_stderr(), _progress(function.__name__, shown=spinner):
                    result = function(*args, **kwargs)
                _emit(result, as_json=json)
                if not getattr(result, "ok", True):
                    raise typer.Exit(getattr(result, "status", FAILURE))

        own = inspect.signature(function, eval_str=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        common = [
            inspect.Parameter("json", keyword, default=False, annotation=Json),
            inspect.Parameter("debug", keyword, default=False, annotation=Debug),
        ]
        signature = own.replace(parameters=[*own.parameters.values(), *common], return_annotation=None)
        run.__annotations__ = {**function.__annotations__, "json": Json, "debug": Debug, "return": None}
        vars(run)["__signature__"] = signature
        app.command(function.__name__)(run)

    return register


class Verbs(TyperGroup):
    """The group of all verbs: words that make no call are one JSON document too where `--json` is among them."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        wanted = "--json" in args
        with _usage(as_json=wanted):
            context = super().make_context(info_name, args, *rest, **extra)
        context.meta["json"] = wanted
        return context

    def invoke(self, ctx: Any) -> Any:
        with _usage(as_json=ctx.meta["json"]):
            return super().invoke(ctx)


@contextmanager
def _usage(*, as_json: bool) -> Iterator[None]:
    try:
        yield
    except typer.TyperException as error:
        if as_json:
            _document("UsageError", error.format_message())
        raise


@contextmanager
def _boundary(name: str, *, as_json: bool, debug: bool) -> Iterator[None]:
    try:
        yield
    except TokenrtError as error:
        if debug:
            raise
        _report(error, str(error), as_json=as_json)
        raise typer.Exit(FAILURE if isinstance(error, InternalError) else BAD_INPUT) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of the pipe has gone; the interpreter's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(FAILURE) from None
    except (typer.Exit, typer.Abort, typer.TyperException):
        raise
    except Exception as error:
        if debug:
            raise
        _report(error, _unexpected(error, name), as_json=as_json)
        raise typer.Exit(FAILURE) from None


def _unexpected(error: Exception, name: str) -> str:
    """What to say of an exception that is none of tokenrt's own."""
    kind, text = type(error).__name__, " ".join(str(error).split()) or "no message"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the system refuses: {text}"
    if isinstance(error, MemoryError):
        return f"out of memory: {text}; run on a machine that has more"
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}tokenrt{os.sep}" in f.filename
    ]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    line = report(f"command {name}, {kind}{where}")
    return f"unexpected {kind}: {text}. {OURS}. {line}; --debug shows the traceback"


def _report(error: Exception, message: str, *, as_json: bool) -> None:
    print(f"error: {message}", file=sys.stderr)
    if as_json:
        _document(type(error).__name__, message)


def _document(kind: str, message: str) -> None:
    print(json.dumps({"error": {"type": kind, "message": message}}))


def _emit(result: Result, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.as_dict(), indent=2, allow_nan=False))
    else:
        from rich.console import Console

        # Commands to copy are neither wrapped nor cut at the terminal's width.
        Console().print(result, soft_wrap=getattr(result, "verbatim", False))
    sys.stdout.flush()


def tell(stage: str) -> None:
    """Show what a long verb is doing: beside the spinner, or in lines now and then where there is no terminal."""
    shown = _SHOWN.get()
    if shown is not None:
        shown(f"{stage} ...")


@contextmanager
def _progress(name: str, *, shown: bool) -> Iterator[None]:
    if not shown:
        yield
        return
    if not sys.stderr.isatty():
        with _telling(_Lines(name)):
            yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{name} ...") as status, _telling(status.update):
        yield


@contextmanager
def _telling(how: Callable[[str], None]) -> Iterator[None]:
    token = _SHOWN.set(how)
    try:
        yield
    finally:
        _SHOWN.reset(token)


class _Lines:
    """A line on standard error when so many seconds have passed since the last one: short work stays silent."""

    def __init__(self, name: str) -> None:
        self._name, self._last = name, time.monotonic()

    def __call__(self, stage: str) -> None:
        now = time.monotonic()
        if now >= self._last + SILENT:
            self._last = now
            print(f"{self._name}: {stage}", file=sys.stderr, flush=True)


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Send what libraries print, from Python and from C, to standard error: the result alone is output."""
    saved = -1
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if saved >= 0:
            os.dup2(saved, 1)
            os.close(saved)
