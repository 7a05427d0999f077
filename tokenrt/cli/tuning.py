"""The verbs that choose a plan and show what came of it: tune does by itself, compare lays models side by side, report shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import tokenrt
from tokenrt.cli import options as o
from tokenrt.cli.boundary import Result, tell, verb

WISH = "Wish (one of these)"


def register(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    for function in (tune, compare, report):
        verb(app)(function)


def tune(
    model: o.Model,
    *,
    data: Annotated[
        Path,
        typer.Option(
            help="What plans are judged on: a folder of pictures or arrays, an .npz, or a .txt with a text in each line.",
            metavar="DIR|FILE",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder of the run: its plans, its model, its journal.", metavar="RUN_DIR"
        ),
    ],
    flops: Annotated[
        float | None,
        typer.Option(
            help="At most this share of the multiply-accumulates.", metavar="F", rich_help_panel=WISH
        ),
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option(help="So many times as fast, on --target.", metavar="X", rich_help_panel=WISH),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(help="At most so many milliseconds, on --target.", metavar="MS", rich_help_panel=WISH),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="The cheapest plan whose mean harm is at most this: KL divergence of classes, 1 - cosine of embeddings, "
            "relative L2 distance of anything else.",
            metavar="D",
            rich_help_panel=WISH,
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods that compete; tome,pitome,topk,evit,atc,dpcknn when left out.", metavar="A,B"
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Whose time is meant: ort-cpu, the default, is measured here; of GPUs a model of the cost is used.",
            metavar="TARGET",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images at a time on the target.", min=1, metavar="B")] = 1,
    samples: Annotated[
        int, typer.Option(help="Of the data, so many go through every plan.", min=1, metavar="N")
    ] = 32,
    seed: Annotated[int, typer.Option(help="Of what is drawn; the same seed gives the same plans.")] = 0,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads that run plans, and of a model that is timed; up to four when left out.", min=1
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Who runs plans: so many processes of this machine, or the workers of a Dask scheduler, tcp://host:port, which "
            "need tokenrt and no file of this machine. Threads of this process when left out. The plans are the same.",
            metavar="N|ADDRESS",
        ),
    ] = None,
    site: o.Site = None,
    grid: o.Grid = None,
    protect: o.Protect = None,
    span: o.Span = None,
    shape: o.Shape = None,
    tensorrt: o.Tensorrt = None,
    folder: o.Folder = None,
) -> Result:
    """Choose how many tokens leave where, and by which method, for a wish; say when it is best to change nothing.

    Plans that follow a rule, sums over single places and changes of the best are run on the data; one that was searched for is
    recommended only where it is surely better than those that follow a rule. Exit status 3, and no model, where the wish cannot
    be met or nothing helps. Started again with the same folder it goes on where it was.

    Example: tokenrt tune vit.onnx --data pictures --flops 0.7 -o run

    Example: tokenrt tune vit.onnx --data pictures --speedup 1.4 --target h100 --methods tome,topk -o run

    Example: tokenrt tune vit.onnx --data pictures --max-drop 0.05 --workers tcp://10.0.0.5:8786 -o run
    """
    return tokenrt.tune(
        model,
        data=data,
        output=output,
        flops=flops,
        speedup=speedup,
        latency=latency,
        max_drop=max_drop,
        **({} if methods is None else {"methods": o.read_names(methods)}),
        target=None if target is None else o.load_target(target, tensorrt, folder),
        batch=batch,
        samples=samples,
        seed=seed,
        threads=threads,
        workers=workers,
        site=site,
        grid=o.read_grid(grid),
        protect=protect,
        span=span,
        shape=shape,
        progress=tell,
    )


def compare(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Reduced ONNX models; plans (.toml), which are applied to the original; folders of either; runs of tune, whose "
            "model is taken.",
            metavar="R.onnx...",
            show_default=False,
        ),
    ],
    *,
    original: Annotated[Path, typer.Option(help="The model before reduction.", metavar="M.onnx")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="What models are run on: a folder of pictures or arrays, an .npz, or a .txt with a text in each line; without "
            "it, seeded noise, which says little of harm.",
            metavar="DIR|FILE",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Of the data, so many go through every model.", min=1, metavar="N")
    ] = 32,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Images at a time when timed; 1 when left out, or as the models have it fixed.",
            min=1,
            metavar="B",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds with each of 12 sets of sessions.", min=3)] = 8,
    threads: Annotated[
        int | None, typer.Option(help="Threads of one operator; four at most when left out.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of noise, where there is no data.")] = 0,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check", help="Ask whether each model passes `tokenrt check`, on eight samples."
        ),
    ] = True,
    target: Annotated[
        str | None,
        typer.Option(
            help="Say too what time each takes on this GPU, by a model, unmeasured.", metavar="TARGET"
        ),
    ] = None,
    sort: Annotated[
        Literal["given", "time", "harm", "work", "memory", "size"],
        typer.Option(help="The order of the rows, the least first; as given when left out."),
    ] = "given",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write a page of it too, one file of HTML.", metavar="report.html"
        ),
    ] = None,
    shape: o.Shape = None,
    tensorrt: o.Tensorrt = None,
    folder: o.Folder = None,
) -> Result:
    """Lay reduced models side by side: work, memory, size, time in turn with the original's, harm, and whether they pass `check`.

    A model is marked where another is no slower and harms no more, and one of the two is no chance, or where it is no faster than
    the original.

    Example: tokenrt compare tome.onnx evit.onnx --original vit.onnx --data pictures -o compared.html

    Example: tokenrt compare run run/plans --original vit.onnx --data pictures --target h100 --sort time
    """
    return tokenrt.compare(
        models,
        original=original,
        data=data,
        samples=samples,
        batch=batch,
        rounds=rounds,
        threads=threads,
        seed=seed,
        check=check,
        target=None if target is None else o.load_target(target, tensorrt, folder),
        sort=sort,
        shape=shape,
        output=output,
        progress=tell,
    )


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR", help="Folder of a run of tune, or of the demonstration.", show_default=False
        ),
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.", metavar="R.html")],
    data: Annotated[
        Path | None, typer.Option(help="Where the run's data is now, if it moved.", metavar="DIR|FILE")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Where the run's model is now, if it moved.", metavar="M.onnx")
    ] = None,
    samples: Annotated[int, typer.Option(help="Photographs or texts to show.", min=1, metavar="N")] = 6,
    every: Annotated[
        bool,
        typer.Option(
            "--every/--front",
            help="Show them under every plan, or under those of the front alone, which is faster.",
        ),
    ] = True,
) -> Result:
    """Write one HTML file that shows a run: every plan tried, tokens block by block, pictures, times, checks, commands.

    It opens in any browser and asks no network for anything. Model and data of the run are read again; the recommended plan, or
    the nearest, is timed and checked on this machine. What was not measured is said to be missing. --json prints the document
    behind the page.

    Example: tokenrt report run -o report.html
    """
    return tokenrt.report(
        run, output=output, data=data, model=model, samples=samples, every=every, progress=tell
    )
