"""The reference page of the command line, from the command line itself: every verb, its arguments and options.

Run as a script it writes the page: `python -m tokenrt.cli.reference docs/cli.md`, or `make docs`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typer.main import get_command

from tokenrt.cli import app
from tokenrt.files import atomic

COMMON = frozenset({"json", "debug", "help"})
"""Parameters of every verb, told once."""

INTRODUCTION = """\
# The command line

The commands of `tokenrt`, which removes tokens from transformers stored as ONNX files: every verb with its arguments and options,
as `tokenrt VERB --help` shows them. `make docs` writes this page.

Every verb takes `--json` (one JSON document on standard output, nothing else), `--debug` (tracebacks; also the environment
variable `TOKENRT_DEBUG`) and `-h`, `--help`. Results go to standard output, progress and errors to standard error. The exit
status is 0 on success, 2 with one message when the input is at fault, and 1 when `check` finds that the comparison failed or
when tokenrt itself is at fault. `tokenrt --version` shows the version."""

DEFAULT_PANELS = {"argument": "Arguments", "option": "Options"}


def page() -> str:
    """The page as Markdown; neither the terminal's width nor its colours matter."""
    root: Any = get_command(app)
    verbs = dict(_verbs(root.commands, root.make_context("tokenrt", [], resilient_parsing=True)))
    listed = ", ".join(f"[`{name}`](#{name.replace(' ', '-')})" for name in sorted(verbs))
    return "\n\n".join([INTRODUCTION, listed, *verbs.values()]) + "\n"


def _verbs(commands: Mapping[str, Any], parent: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each verb and its section; verbs of a group are named with it."""
    for name, command in sorted(commands.items()):
        context = command.make_context(name, [], parent=parent, resilient_parsing=True)
        inner = getattr(command, "commands", None)
        if inner is None:
            yield f"{prefix}{name}", _section(f"{prefix}{name}", command, context)
        else:
            yield from _verbs(inner, context, f"{name} ")


def _section(name: str, command: Any, context: Any) -> str:
    told, *examples = re.split(r"\s*Example: ", command.help)
    panels: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        if parameter.name not in COMMON:
            panel = parameter.rich_help_panel or DEFAULT_PANELS[parameter.param_type_name]
            panels.setdefault(panel, []).append(_row(parameter, context))
    tables = [f"| {panel} | |\n| --- | --- |\n" + "\n".join(rows) for panel, rows in panels.items()]
    shown = "```bash\n" + "\n".join(examples) + "\n```"
    return "\n\n".join([f"## {name}", told, *([shown] if examples else []), *tables])


def _row(parameter: Any, context: Any) -> str:
    """Names and value of a parameter, and what it does with its default, as a row of a table."""
    names, told = parameter.get_help_record(context)
    if parameter.param_type_name == "argument":
        names = parameter.metavar or parameter.name.upper()
    return f"| `{_cell(names)}` | {_cell(told)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def main() -> None:
    """Write the page into the file named."""
    with atomic(sys.argv[1]) as temporary:
        Path(temporary).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
