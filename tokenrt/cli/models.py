"""Verbs at the ends of the chain: demo, export, build and profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import tokenrt
from tokenrt.cli import options as o
from tokenrt.cli.boundary import Result, tell, verb
from tokenrt.errors import TokenrtError


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    verb(app, spinner=False)(demo)
    for function in (export, build, profile):
        verb(app)(function)


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write.", metavar="DIR")] = Path("out/demo"),
) -> Result:
    """Run the whole chain on a real model and real pictures, and write what came of it.

    Example: tokenrt demo --out out/demo
    """
    from tokenrt.perf.demo.demo import run

    return run(out=out)


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="hf:NAME_OR_DIR, timm:NAME, torchvision:NAME or module.py:function.",
            metavar="SOURCE",
            show_default=False,
        ),
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Model to write.", metavar="M.onnx")],
    opset: Annotated[int, typer.Option(help="Opset to export to.")] = 18,
    dtype: Annotated[Literal["fp32", "fp16"], typer.Option(help="Type of the weights.")] = "fp32",
    batch: Annotated[
        int | None, typer.Option(help="Fix the batch; without it the batch is dynamic.", metavar="B")
    ] = None,
    exporter: Annotated[
        Literal["dynamo", "torchscript"], typer.Option(help="Which of torch's exporters to use.")
    ] = "dynamo",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Make the model from its configuration alone.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    image_size: Annotated[int | None, typer.Option(help="Side of the input picture, in pixels.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens of a text input.")] = None,
    part: Annotated[
        Literal["vision"] | None,
        typer.Option(help="Tower and projector of a vision-language model of Hugging Face."),
    ] = None,
    image_grid: Annotated[
        str | None,
        typer.Option(
            help="Fixed grid of patches (Qwen) or crops (LLaVA-NeXT, LLaVA-OneVision) of the vision part; 8x1x1 is a "
            "clip of 8 frames.",
            metavar="[FRAMESx]ROWSxCOLUMNS",
        ),
    ] = None,
    keep_layer: Annotated[
        int | None,
        typer.Option(
            help="Layer of the tower that the features do not read, as LLaVA's last, -1: its attention stays a block, which "
            "`reduce --site output --tap-layer` reads, and attended_L an output, which `reduce` then takes away.",
            metavar="L",
        ),
    ] = None,
) -> Result:
    """Export a torch, timm, Hugging Face or torchvision model to ONNX and compare the two.

    Example: tokenrt export timm:deit_small_patch16_224 -o deit.onnx --random-weights

    Example: tokenrt export hf:llava --part vision -o vision.onnx --random-weights --keep-layer -1
    """
    return tokenrt.export(
        source,
        output,
        opset=opset,
        dtype=dtype,
        batch=batch,
        exporter=exporter,
        random_weights=random_weights,
        seed=seed,
        image_size=image_size,
        sequence_length=sequence_length,
        part=part,
        image_grid=image_grid,
        keep_layer=keep_layer,
    )


def build(
    model: Annotated[Path, typer.Argument(help="ONNX model.", metavar="R.onnx", show_default=False)],
    *,
    target: Annotated[
        str, typer.Option(help="Device to build for; `tokenrt targets` lists them.", metavar="TARGET")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Engine to write.", metavar="R.engine")],
    batch: Annotated[
        str | None,
        typer.Option(help="Range of a dynamic batch; 1:8:8 when left out.", metavar="MIN:OPT:MAX"),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(help="Memory the builder may plan for.", metavar="MIB")
    ] = None,
    plugins: Annotated[
        list[Path] | None,
        typer.Option(help="Library with plugins, for TensorRT; may be repeated.", metavar="FILE"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            envvar="TOKENRT_ENGINE_CACHE", help="Folder where engines are kept and looked for.", metavar="DIR"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even when the engine is there.")] = False,
    show: Annotated[
        bool, typer.Option("--print", help="Print the commands to run where TensorRT is; build nothing.")
    ] = False,
    tensorrt: o.Tensorrt = None,
    folder: o.Folder = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the builder's log on standard error.")
    ] = False,
) -> Result:
    """Build an engine for a target; for TensorRT-RTX its GPU need not be present.

    Example: tokenrt build reduced.onnx --target rtx-sm89 -o reduced.engine
    """
    wanted = o.load_target(target, tensorrt, folder)
    if show:
        from tokenrt.targets.build import commands

        return commands(
            model,
            target=wanted,
            output=output,
            batch=batch,
            workspace=workspace,
            plugins=plugins or (),
            release=tensorrt,
            folder=folder,
        )
    return tokenrt.build(
        model,
        target=wanted,
        output=output,
        batch=batch,
        workspace=workspace,
        plugins=plugins or (),
        cache=cache,
        force=force,
        verbose=verbose,
        progress=tell,
    )


def profile(
    model: Annotated[
        Path,
        typer.Argument(
            help="ONNX model, or an engine built for the target.",
            metavar="R.onnx|R.engine",
            show_default=False,
        ),
    ],
    *,
    original: Annotated[
        Path | None, typer.Option(help="The model before reduction, to compare with.", metavar="M.onnx")
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="Where to run: ort-cpu is this machine, others are built and timed by trtexec.",
            metavar="TARGET",
        ),
    ] = "ort-cpu",
    batch: Annotated[int, typer.Option(help="Batch of the inputs.", min=1)] = 1,
    rounds: Annotated[
        int, typer.Option(help="Rounds with each of 12 pairs of sessions, on ort-cpu.", min=3)
    ] = 8,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of one operator, on ort-cpu; four at most when left out.", min=1),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Time blocks against token counts on ort-cpu, and write a table of it."),
    ] = False,
    methods: Annotated[
        str | None,
        typer.Option(
            help="With --sweep: the methods whose reductions are timed; tome when left out.", metavar="A,B"
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="With --sweep: the file to write; out/profile/sweep-KEY.json when left out.",
            metavar="T.json",
        ),
    ] = None,
    host: o.Host = None,
    port: o.Port = None,
    identity: o.Identity = None,
    ssh_config: o.SshConfig = None,
    ssh_option: o.SshOption = None,
    device_folder: o.DeviceFolder = None,
    keep: o.KeepFolder = False,
    plugins: Annotated[
        list[Path] | None,
        typer.Option(help="Library with plugins; may be repeated.", metavar="FILE", rich_help_panel=o.DEVICE),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for trtexec's files; out/profile/TARGET when left out.",
            metavar="DIR",
            rich_help_panel=o.DEVICE,
        ),
    ] = None,
    trtexec: o.Trtexec = None,
    workspace: Annotated[
        int | None,
        typer.Option(help="Memory the builder may plan for.", metavar="MIB", rich_help_panel=o.DEVICE),
    ] = None,
    timeout: o.Timeout = 3600,
    reconnect: o.Reconnect = 120,
    tensorrt: o.Tensorrt = None,
    folder: o.Folder = None,
) -> Result:
    """Time a model in pairs with its original, and say in which blocks the time is.

    For a target of TensorRT, both are built and timed by the trtexec of this machine, or of another over ssh.

    Example: tokenrt profile reduced.onnx --original deit.onnx

    Example: tokenrt profile reduced.onnx --original deit.onnx --target orin-nano --host user@jetson

    Example: tokenrt profile deit.onnx --sweep --methods tome,topk --table deit.json
    """
    if sweep:
        from tokenrt.perf.planner.latency import sweep as latency

        if target != "ort-cpu" or original is not None:
            raise TokenrtError(
                "--sweep times the model that is given on ort-cpu: drop --target and --original"
            )
        names = o.read_names(methods or "tome")
        return latency.run(
            model,
            names,
            output=table,
            batch=batch,
            threads=threads,
            progress=lambda told, n, of: tell(f"{n} of {of}: {told}"),
        )
    if methods is not None or table is not None:
        raise TokenrtError("--methods and --table go with --sweep")
    wanted = o.load_target(target, tensorrt, folder)
    device = {
        "plugins": plugins or (),
        "out": out or Path("out/profile") / wanted.name,
        "tool": trtexec or "",
        "workspace": workspace,
        "timeout": timeout,
        "patience": reconnect,
        "keep": keep,
    }
    return tokenrt.profile(
        model,
        original=original,
        target=wanted,
        batch=batch,
        rounds=rounds,
        threads=threads,
        machine=o.read_host(host, port, identity, ssh_config, ssh_option, device_folder),
        progress=tell,
        **(device if wanted.builder == "tensorrt" else {}),
    )
