"""Verbs that read or rewrite a graph: inspect, plan, reduce, lower, convert, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import tokenrt
from tokenrt.cli import options as o
from tokenrt.cli.boundary import Result, tell, verb
from tokenrt.errors import PlanError, TokenrtError

Output = Annotated[Path, typer.Option("--output", "-o", help="Model to write.", metavar="R.onnx")]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for function in (inspect, plan, reduce, lower, convert, check):
        verb(app)(function)


def inspect(model: o.Model, *, shape: o.Shape = None, protect: o.Protect = None) -> Result:
    """Show the blocks, the token axis, every place that takes a reduction, and why the others do not.

    A place is offered when `reduce --method slice` takes it alone, with one token leaving; that is tried, and nothing is written.

    Example: tokenrt inspect vit.onnx
    """
    return tokenrt.inspect(model, shape=shape, protect=protect)


def plan(
    model: o.Model,
    *,
    method: o.Method = None,
    remove: o.Remove = None,
    keep: o.Keep = None,
    layers: o.Layers = None,
    tokens: o.Tokens = None,
    flops: o.Flops = None,
    schedule: o.Schedule = None,
    multiple_of: o.MultipleOf = None,
    site: o.Site = None,
    grid: o.Grid = None,
    transformers: o.Transformers = None,
    protect: o.Protect = None,
    span: o.Span = None,
    text: o.Text = None,
    short: o.Short = None,
    cache: o.Cache = None,
    tap_layer: o.TapLayer = None,
    proportional_attention: o.Proportional = None,
    settings: o.Set = None,
    shape: o.Shape = None,
    allow_noop: o.AllowNoop = False,
    target: Annotated[
        str | None,
        typer.Option(
            help="Say too what the reductions add on this target: launches by site, and time by a model, unmeasured.",
            metavar="TARGET",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(help="Images at a time, for what is said of --target.", min=1, metavar="B")
    ] = 1,
    tensorrt: o.Tensorrt = None,
    folder: o.Folder = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Plan to write, as TOML.", metavar="P.toml")
    ] = None,
) -> Result:
    """Turn a budget into token counts per block, as a file that can be edited and applied.

    Example: tokenrt plan vit.onnx --method tome --remove 8 -o plan.toml
    """
    wanted = None if target is None else o.load_target(target, tensorrt, folder)
    made = tokenrt.plan(
        model,
        method=_required(method),
        budget=o.read_budget(remove, keep, layers, tokens, flops, schedule, multiple_of) or o.no_budget(),
        site=site,
        grid=o.read_grid(grid),
        transformers=o.read_transformers(transformers),
        protect=protect,
        span=span,
        text=text,
        short=short,
        cache=cache,
        tap_layer=tap_layer,
        proportional_attention=proportional_attention,
        options=o.read_settings(settings),
        shape=shape,
        allow_noop=allow_noop,
    )
    if output is not None:
        made.save(output)
    if wanted is None:
        return made
    from tokenrt.perf.cost.sites import cost_of

    return cost_of(model, made, wanted, batch=batch, shape=shape)


def reduce(
    model: o.Model,
    *,
    output: Output,
    plan: Annotated[
        Path | None, typer.Option(help="Apply this plan instead of --method and a budget.", metavar="P.toml")
    ] = None,
    method: o.Method = None,
    remove: o.Remove = None,
    keep: o.Keep = None,
    layers: o.Layers = None,
    tokens: o.Tokens = None,
    flops: o.Flops = None,
    schedule: o.Schedule = None,
    multiple_of: o.MultipleOf = None,
    site: o.Site = None,
    grid: o.Grid = None,
    transformers: o.Transformers = None,
    protect: o.Protect = None,
    span: o.Span = None,
    text: o.Text = None,
    short: o.Short = None,
    cache: o.Cache = None,
    tap_layer: o.TapLayer = None,
    proportional_attention: o.Proportional = None,
    settings: o.Set = None,
    shape: o.Shape = None,
    allow_noop: o.AllowNoop = False,
    source_map: Annotated[
        bool,
        typer.Option("--source-map", help="Add an output that says where each original token went."),
    ] = False,
) -> Result:
    """Insert token reduction, repair every shape downstream, prove the result and write it.

    Example: tokenrt reduce vit.onnx -o reduced.onnx --method tome --remove 8
    """
    budget = o.read_budget(remove, keep, layers, tokens, flops, schedule, multiple_of)
    common: dict[str, Any] = {
        "shape": shape,
        "allow_noop": allow_noop,
        "source_map": source_map,
        "output": output,
    }
    if plan is not None:
        choices = {
            "--method": method,
            "a budget": budget,
            "--site": site,
            "--grid": grid,
            "--transformers": transformers,
            "--protect": protect,
            "--span": span,
            "--text": text,
            "--short": short,
            "--cache": cache,
            "--tap-layer": tap_layer,
            "--proportional-attention": proportional_attention,
            "--set": settings,
        }
        clash = [name for name, value in choices.items() if value is not None]
        if clash:
            raise PlanError(f"--plan already says {', '.join(clash)}: drop these, or edit {plan}")
        return tokenrt.reduce(model, plan=plan, **common)
    return tokenrt.reduce(
        model,
        method=_required(method, "--plan P.toml or --method NAME"),
        budget=budget or o.no_budget(),
        site=site,
        grid=o.read_grid(grid),
        transformers=o.read_transformers(transformers),
        protect=protect,
        span=span,
        text=text,
        short=short,
        cache=cache,
        tap_layer=tap_layer,
        proportional_attention=proportional_attention,
        options=o.read_settings(settings),
        **common,
    )


def lower(
    model: Annotated[Path, typer.Argument(help="Reduced ONNX model.", metavar="R.onnx", show_default=False)],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Model to write.", metavar="L.onnx")],
    inline: Annotated[bool, typer.Option("--inline", help="Leave only standard operators.")] = False,
    plugin: Annotated[
        bool, typer.Option("--plugin", help="Run the nodes as plugins; may go with --target.")
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="Take the form this target wants.", metavar="TARGET")
    ] = None,
    tensorrt: o.Tensorrt = None,
    folder: o.Folder = None,
) -> Result:
    """Choose the form the reduction nodes take: inlined, bare for plugins, or what a target wants.

    Example: tokenrt lower reduced.onnx -o plain.onnx --inline
    """
    wanted = None if target is None else o.load_target(target, tensorrt, folder)
    return tokenrt.lower(model, inline=inline, plugin=plugin, target=wanted, output=output)


def convert(
    model: Annotated[Path, typer.Argument(help="ONNX model.", metavar="R.onnx", show_default=False)],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Model to write.", metavar="H.onnx")],
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision as float16.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Half precision as bfloat16.")] = False,
    keep_io: Annotated[
        bool, typer.Option("--keep-io", help="Leave inputs and outputs as they are, behind casts.")
    ] = False,
    rules: Annotated[
        Literal["auto", "standard", "autocast"],
        typer.Option(
            help="What stays in float32: the standard lists, or these and what modelopt's AutoCast finds out of range; "
            "auto takes AutoCast where it is installed."
        ),
    ] = "auto",
    data: Annotated[
        Path | None,
        typer.Option(help="Inputs to judge and compare on; without it, seeded noise.", metavar="DIR|NPZ|TXT"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare with the float32 model before writing.")
    ] = True,
) -> Result:
    """Cast a float32 model to half precision, but for the reduction's scores, sums and sizes.

    Example: tokenrt convert reduced.onnx -o half.onnx --fp16 --keep-io
    """
    if fp16 == bf16:
        raise TokenrtError("convert takes exactly one of --fp16 and --bf16")
    return tokenrt.convert(
        model,
        precision="fp16" if fp16 else "bf16",
        keep_io=keep_io,
        rules=rules,
        data=data,
        check=check,
        output=output,
    )


def check(
    original: Annotated[
        Path, typer.Argument(help="The model before reduction.", metavar="M.onnx", show_default=False)
    ],
    reduced: Annotated[
        Path, typer.Argument(help="The model after it.", metavar="R.onnx", show_default=False)
    ],
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="Inputs to compare on; without it, seeded noise.", metavar="DIR|NPZ|TXT"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch of seeded inputs.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of seeded inputs.")] = 0,
    samples: Annotated[int, typer.Option(help="Batches of seeded inputs.")] = 4,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="With photographs as --data: write each with the patches that stayed, were joined or left drawn in.",
            metavar="DIR",
        ),
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option(help="Fail below this cosine of any output.", metavar="X")
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Fail below this share of equal top classes.", metavar="X")
    ] = None,
    properties: Annotated[
        bool,
        typer.Option(
            "--properties/--no-properties",
            help="Ask whether pictures of a batch stay apart, and whether nothing changes where nothing is removed.",
        ),
    ] = True,
) -> Result:
    """Compare a reduced model with its original: drift, agreement, finite values, shapes, pictures that stay apart.

    Exit status 1 says that the comparison failed.

    Example: tokenrt check vit.onnx reduced.onnx --data pictures.npz

    Example: tokenrt check vit.onnx reduced.onnx --data photographs --pictures out/tokens
    """
    if pictures is not None and data is None:
        raise TokenrtError("--pictures draws on photographs: give a folder of them with --data")
    report = tokenrt.check(
        original,
        reduced,
        data=data,
        batch=batch,
        seed=seed,
        samples=samples,
        min_cosine=min_cosine,
        min_agreement=min_agreement,
        properties=properties,
    )
    if pictures is None or data is None:
        return report
    from tokenrt.perf.pictures.write import Checked, write

    return Checked(report, write(original, reduced, data, pictures, tell))


def _required(method: str | None, instead: str = "--method NAME") -> str:
    if method is None:
        raise PlanError(f"no method: give {instead}; `tokenrt methods` lists them")
    return method
