"""The part of docs/kernels.md that is a model: launches, blocks and time of every operator as a plugin, and the constants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenrt.perf.bench import results
from tokenrt.perf.cost.chip import CONSTANTS, Chip
from tokenrt.perf.cost.jobs import Job, jobs
from tokenrt.perf.cost.model import MODELS
from tokenrt.targets import load

TARGETS = ("orin-nano", "l4", "a100", "h100")
BATCHES = (1, 32)

TOLD = (
    "**Model, unmeasured: nothing here ran on a GPU.** For each launch: the time from launch to launch, and then the longest of "
    "what one block waits for itself times the waves of blocks, bytes over bandwidth, and operations over the rate of the "
    "multiprocessors that have a block. Good to a factor of about two; meant for ratios. Numbers of launches and blocks are not "
    "estimates: tests compare them with what the host build of the kernels would launch. The model is `perf/cost`; facts of "
    "the GPUs are those of `targets/profiles`, its other constants stand below."
)


def chips() -> list[Chip]:
    return [Chip.of(load(name)) for name in TARGETS]


def as_dict() -> dict[str, Any]:
    """Every operator at every model's block, and the constants."""
    named = chips()
    return {
        "constants": {name: vars(constant) for name, constant in CONSTANTS.items()},
        "models": [
            {
                "model": name,
                "batch": batch,
                "block_us": {chip.name: round(1e6 * block.seconds(chip, batch), 2) for chip in named},
                "operators": [
                    {"setting": job.setting, **job.work.as_dict(), **_on(job, named)}
                    for job in jobs(block, batch)
                ],
            }
            for name, block in MODELS.items()
            for batch in BATCHES
        ],
    }


def _on(job: Job, named: list[Chip]) -> dict[str, Any]:
    """Time on each GPU, and launches where they are others than those of every GPU."""
    works = {chip: job.on(chip) for chip in named}
    return {
        "model_us": {chip.name: round(1e6 * work.seconds(chip), 2) for chip, work in works.items()},
        "launches_on": {
            chip.name: work.as_dict()["launches"] for chip, work in works.items() if work != job.work
        },
    }


def page() -> list[str]:
    """The sections of the page."""
    named = chips()
    head = ["operator", "setting", "launches:", "blocks:", *(f"{chip.name}:" for chip in named)]
    told = (
        "A section for each model, of one of its blocks in float16: the number of launches, the blocks of the one that takes "
        f"longest on {named[-1].name}, and for each GPU the time in microseconds with, behind it, what it is of the time of "
        "a block of the model."
    )
    sections = [
        part
        for name in MODELS
        for batch in BATCHES
        for part in (
            f"### {name} tokens, batch {batch}",
            results.table(head, list(_rows(name, batch, named))),
        )
    ]
    constants = [[f"`{name}`", f"{each.value:g}", each.source] for name, each in CONSTANTS.items()]
    return [
        "## Cost of the plugins", TOLD, told, *sections,
        "### Constants", results.table(["constant", "value:", "source"], constants),
    ]  # fmt: skip


def _rows(name: str, batch: int, named: list[Chip]) -> Iterator[list[str]]:
    block = MODELS[name]
    whole = {chip: block.seconds(chip, batch) for chip in named}
    yield ["*a block of the model*", "", "8", "", *(f"*{_short(1e6 * whole[chip])}*" for chip in named)]
    for job in jobs(block, batch):
        works, last = {chip: job.on(chip) for chip in named}, named[-1]
        launches, own = len(job.work.launches), len(works[last].launches)
        yield [
            f"`{job.operator}`", job.setting, f"{launches}" if own == launches else f"{launches}, {own} on {last.name}",
            str(works[last].longest(last).blocks),
            *(
                f"{_short(1e6 * work.seconds(chip))} ({_short(work.seconds(chip) / whole[chip])})"
                for chip, work in works.items()
            ),
        ]  # fmt: skip


def _short(value: float) -> str:
    """Two digits, or whole numbers: the model knows no more."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
