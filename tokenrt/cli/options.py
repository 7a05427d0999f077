"""Options several verbs share, and the readers that turn their text into the API's arguments."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from tokenrt.errors import DeviceError, MethodError, PlanError
from tokenrt.passes.planning import schedules

if TYPE_CHECKING:
    from tokenrt.passes.planning.plan import Budget
    from tokenrt.targets import Target
    from tokenrt.targets.trtexec.machine import Machine

BUDGETS = (
    "--remove R, --keep RATIO --layers I,J,K, --tokens N1,N2,..., --flops FRACTION or --schedule NAME=VALUE"
)
PANEL = "Budget: one of these"

DEVICE = "On a device with TensorRT"

Model = Annotated[Path, typer.Argument(help="ONNX model.", metavar="M.onnx", show_default=False)]
Method = Annotated[
    str | None, typer.Option(help="Reduction method; `tokenrt methods` lists them.", metavar="NAME")
]
Remove = Annotated[
    int | None, typer.Option(help="Tokens that leave at every block.", metavar="R", rich_help_panel=PANEL)
]
Keep = Annotated[
    float | None,
    typer.Option(
        help="Ratio of unprotected tokens kept at each of --layers.", metavar="RATIO", rich_help_panel=PANEL
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Blocks, from 0, where the budget applies; --keep needs them.",
        metavar="I,J,K",
        rich_help_panel=PANEL,
    ),
]
Tokens = Annotated[
    str | None,
    typer.Option(
        help="Tokens left after each block, or each of --layers; with --site cache entries of every layer, or of each.",
        metavar="N1,N2,...",
        rich_help_panel=PANEL,
    ),
]
Flops = Annotated[
    float | None,
    typer.Option(help="Fraction of the FLOPs to keep.", metavar="FRACTION", rich_help_panel=PANEL),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        help=f"A schedule by name: {schedules.listed()}.", metavar="NAME=VALUE", rich_help_panel=PANEL
    ),
]
MultipleOf = Annotated[
    int | None,
    typer.Option(
        help="Round every count of tokens, protected ones included, to the nearest multiple of this that the method can "
        "leave, of two as near the larger; a site at which none leaves then is left out. 8 suits GPUs.",
        metavar="M",
        rich_help_panel=PANEL,
    ),
]
Site = Annotated[
    str | None,
    typer.Option(
        help="Where the reduction sits: after-attention by default; around-attention, their only place, for methods whose "
        "tokens come back after each attention; output, for the tokens of an output itself, which then has only those that are "
        "left: name it where several have tokens of their own; cache, for methods of a language model's cache.",
        metavar="around-attention|after-attention|after-block|output[:NAME]|cache",
        show_default=False,
    ),
]
Short = Annotated[
    str | None,
    typer.Option(
        help="Outputs with a row for each token, by name, or all, that keep the rows that are left instead of getting every "
        "token back; the model then tells which these are in kept_index, or in token_source_map where tokens were merged. "
        "Behind a merger that makes one row of k x k tokens (Qwen) they leave in whole units.",
        metavar="NAME,...|all",
        show_default=False,
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        help="Inside a language model: per-layer (each layer's cache holds the tokens that reached it, the default), or gathered "
        "(all hold those that are left at the end, for decoders with one mask).",
        metavar="FORM",
        show_default=False,
    ),
]
Span = Annotated[
    str | None,
    typer.Option(
        help="Only tokens S to E-1 may leave; all others are protected.", metavar="S:E", show_default=False
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        help="Inside a language model: tokens S to E-1 are the words that a method reads, where it reads any; without it, all "
        "tokens behind those that may leave.",
        metavar="S:E",
        show_default=False,
    ),
]
TapLayer = Annotated[
    int | None,
    typer.Option(
        help="With --site output, the block whose attention and keys a method reads: from 0, or from the end; -1, the last, by "
        "default.",
        metavar="L",
        show_default=False,
    ),
]
Grid = Annotated[
    str | None,
    typer.Option(
        help="Layout of the unprotected tokens, for methods that need one where the graph does not show it.",
        metavar="HxW",
    ),
]
Transformers = Annotated[
    str | None,
    typer.Option(
        help="Transformers to reduce where a model has several, counted from 0 as `tokenrt inspect` lists them. By default "
        "the first; for methods whose tokens come back after each attention, all that have as many tokens as the largest.",
        metavar="I,J|all",
        show_default=False,
    ),
]
Protect = Annotated[
    str | None,
    typer.Option(
        help="Tokens that never leave, beside those that `tokenrt inspect` shows as protected: positions and ranges without "
        "their end; negative ones count from the end.",
        metavar="I,J,S:E",
        show_default=False,
    ),
]
Proportional = Annotated[
    bool | None,
    typer.Option(
        "--proportional-attention/--no-proportional-attention",
        help="Add log size to the logits of later attention; on by default for size-weighted merging.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="An option of the method; may be repeated.", metavar="NAME=VALUE"),
]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        help="Fix an input's shape, as in ids=1x128, or ids=Bx128 for a dynamic batch, or give that of an input which a method "
        "adds, as text=1x32x4096; may be repeated.",
        metavar="NAME=1x128",
    ),
]
Tensorrt = Annotated[
    str | None,
    typer.Option(help="Release of TensorRT on the target, as 10.15; else the profile's.", metavar="RELEASE"),
]
Folder = Annotated[
    Path | None,
    typer.Option("--targets", help="A folder with profiles of your own, as TOKENRT_TARGETS.", metavar="DIR"),
]
Host = Annotated[
    str | None,
    typer.Option(
        help="Run there over ssh, with your own ssh configuration and keys.",
        metavar="USER@DEVICE",
        rich_help_panel=DEVICE,
    ),
]
Port = Annotated[
    int | None, typer.Option(help="Port of ssh on the device.", min=1, max=65535, rich_help_panel=DEVICE)
]
Identity = Annotated[
    Path | None,
    typer.Option(help="Private key that ssh offers.", metavar="FILE", rich_help_panel=DEVICE),
]
SshConfig = Annotated[
    Path | None,
    typer.Option(help="Configuration of ssh instead of your own.", metavar="FILE", rich_help_panel=DEVICE),
]
SshOption = Annotated[
    list[str] | None,
    typer.Option(
        help="An option of ssh, as ProxyJump=gate; may be repeated.",
        metavar="NAME=VALUE",
        rich_help_panel=DEVICE,
    ),
]
DeviceFolder = Annotated[
    str | None,
    typer.Option(
        help="Where to work on the device; the home directory when left out.",
        metavar="DIR",
        rich_help_panel=DEVICE,
    ),
]
KeepFolder = Annotated[
    bool, typer.Option("--keep", help="Leave the work folder on the device.", rich_help_panel=DEVICE)
]
Trtexec = Annotated[
    str | None,
    typer.Option(
        help="Where trtexec is; else on the path or in /usr/src/tensorrt/bin.",
        metavar="FILE",
        rich_help_panel=DEVICE,
    ),
]
Timeout = Annotated[
    int, typer.Option(help="Seconds for each build and each run.", min=1, rich_help_panel=DEVICE)
]
Reconnect = Annotated[
    int,
    typer.Option(help="Seconds a lost connection is tried again.", min=1, max=240, rich_help_panel=DEVICE),
]
AllowNoop = Annotated[bool, typer.Option("--allow-noop", help="Succeed when no site takes a reduction.")]


def load_target(name: str, tensorrt: str | None, folder: Path | None) -> Target:
    """The target of this name, with the release and the user's own profiles. Raises TargetError."""
    from tokenrt.targets import load

    return load(name, tensorrt=tensorrt, folder=folder)


def read_host(
    name: str | None,
    port: int | None,
    identity: Path | None,
    config: Path | None,
    options: Iterable[str] | None,
    folder: str | None,
) -> Machine | None:
    """The machine of `--host`; None where none was given. Raises DeviceError."""
    from tokenrt.targets.trtexec.machine import host

    if name is not None:
        return host(name, folder=folder, port=port, identity=identity, config=config, options=options or ())
    given = {
        "--port": port,
        "--identity": identity,
        "--ssh-config": config,
        "--ssh-option": options,
        "--device-folder": folder,
    }
    for option, value in given.items():
        if value is not None:
            raise DeviceError(f"{option} goes with --host: there is no connection without it")
    return None


def read_budget(
    remove: int | None,
    keep: float | None,
    layers: str | None,
    tokens: str | None,
    flops: float | None,
    schedule: str | None = None,
    multiple_of: int | None = None,
) -> Budget | None:
    """Return the one budget that was given, or None when none was. Raises PlanError."""
    found = _budget(remove, keep, layers, tokens, flops, schedule)
    if found is None and multiple_of is not None:
        raise PlanError("--multiple-of rounds the counts of a budget; give one with it")
    return found if found is None or multiple_of is None else found.rounded(multiple_of)


def _budget(
    remove: int | None,
    keep: float | None,
    layers: str | None,
    tokens: str | None,
    flops: float | None,
    schedule: str | None,
) -> Budget | None:
    from tokenrt.passes.planning.plan import Budget

    options = {
        "--remove": remove,
        "--keep": keep,
        "--tokens": tokens,
        "--flops": flops,
        "--schedule": schedule,
    }
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise PlanError(f"{' and '.join(given)} are each a budget: give exactly one of {BUDGETS}")
    blocks = None if layers is None else _integers("--layers", layers)
    if remove is not None:
        return Budget.remove(remove, blocks)
    if keep is not None:
        return Budget.keep(keep, blocks)
    if tokens is not None:
        return Budget.tokens(_integers("--tokens", tokens), blocks)
    if schedule is not None:
        name, _, value = schedule.partition("=")
        return Budget.schedule(name, value, blocks)
    if blocks is not None:
        raise PlanError(
            "--layers says where --keep, --remove, --tokens or --schedule apply; give one of these with it"
        )
    return None if flops is None else Budget.flops(flops)


def read_names(text: str) -> list[str]:
    """Names with commas between, as in tome,topk."""
    return [name.strip() for name in text.split(",") if name.strip()]


def read_grid(text: str | None) -> tuple[int, ...] | None:
    """Read `--grid 14x14`, or 8x14x14 for 8 frames. Raises PlanError."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise PlanError(f"--grid {text}: expected HxW or FRAMESxHxW, as in 14x14") from None


def read_transformers(text: str | None) -> list[int] | Literal["all"] | None:
    """Read `--transformers 0,2` or `--transformers all`. Raises PlanError."""
    if text is None:
        return None
    return "all" if text == "all" else _integers("--transformers", text)


def no_budget() -> NoReturn:
    """Raise the PlanError of a command line without a budget."""
    raise PlanError(f"no budget: give exactly one of {BUDGETS}")


def read_settings(pairs: Iterable[str] | None) -> dict[str, str] | None:
    """Read `--set name=value` pairs; the method reads the values. Raises MethodError."""
    settings: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise MethodError(f"--set {pair}: expected NAME=VALUE, as in --set heads=mean")
        settings[name.replace("-", "_")] = value
    return settings or None


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PlanError(f"{option} {text}: expected whole numbers with commas between, as in 3,6,9") from None
