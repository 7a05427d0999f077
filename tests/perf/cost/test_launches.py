"""The table of launches against what the host build of the kernels would launch, over each boundary of sizes and types."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.plugins.helpers.running import needs_compiler
from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops import OPERATORS as NODES
from tokenrt.perf.cost import jobs, operators
from tokenrt.perf.cost.chip import Chip
from tokenrt.perf.cost.launch import Launch
from tokenrt.perf.cost.model import MODELS, Block
from tokenrt.plugins.host import kernels, recorder
from tokenrt.plugins.host.launches import INDICES, KERNELS

ODD = [
    Block(2 * 64 + 1, 65, 65),
    Block(1023, 64),
    Block(1025, 64),
    Block(1026, 60, 60),
    Block(2048, 128),
    Block(2050, 128),
    Block(2100, 64),
    Block(47, 96, 96),
]


def told(launches: Sequence[Launch]) -> list[tuple[str, int, int]]:
    return [(each.kernel, each.blocks, each.threads) for each in launches]


def started(job: jobs.Job) -> list[tuple[str, int, int]]:
    kind = {2: "float16", 4: "float32"}[job.item]
    inputs = [
        recorder.like(shape, np.int64 if name in INDICES else kind)
        for name, shape in zip(NODES[job.operator].inputs, job.shapes, strict=True)
    ]
    found = recorder.recorded(job.operator, inputs, job.attributes)
    return [(re.sub("<.*", "", each.kernel), each.blocks, each.threads) for each in found.launches]


@needs_compiler
@pytest.mark.parametrize("block", [*MODELS.values(), *ODD], ids=lambda block: f"{block.tokens}x{block.width}")
@pytest.mark.parametrize("batch", [1, 3])
def test_launches_are_those_of_the_kernels(block: Block, batch: int) -> None:
    for job in jobs.jobs(block, batch):
        assert told(job.work.launches) == started(job), (job.operator, job.setting)


@needs_compiler
@pytest.mark.parametrize("rows", [3, 4, 5])
def test_a_few_rows_of_scores(rows: int) -> None:
    heads = (2, 6, 600, 64)
    asked = {"scale": 0.1, "first_row": [0], "end_row": [rows]}
    job = jobs.Job("TokenScore", "", [heads, heads, (1, 1, 1, 1)], asked)
    assert told(job.work.launches) == started(job)


@needs_compiler
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("tokens", [64, 257, 258, 4095, 4096, 4097, 9000])
def test_selections_of_any_length(tokens: int, order: int) -> None:
    asked = {"keep": [tokens // 2], "protect": [1], "order": order}
    job = jobs.Job("TokenSelect", "", [(2, tokens)], asked, 4)
    assert told(job.work.launches) == started(job)


@needs_compiler
@pytest.mark.parametrize("tokens", [65, 513, 515, 1023, 2050, 8191, 8195, 16001])
def test_matches_of_any_size(tokens: int) -> None:
    job = next(job for job in jobs.jobs(Block(tokens, 64), 2) if job.operator == "TokenMatch")
    assert told(job.work.launches) == started(job)


CLUSTERS = [
    Chip("h100", 132, 1e12, 1e13, 1e14, 1e14, 2e9, 2e-6, 9.0),
    Chip("rtx-5090", 170, 1e12, 1e13, 1e14, 1e14, 2e9, 2e-6, 12.0),
    Chip("part of a b200", 20, 1e12, 1e13, 1e14, 1e14, 2e9, 2e-6, 10.0),
    Chip("l4", 58, 1e12, 1e13, 1e14, 1e14, 2e9, 2e-6, 8.9),
]


@needs_compiler
@pytest.mark.parametrize("chip", CLUSTERS, ids=lambda chip: chip.name)
@pytest.mark.parametrize(
    ("width", "head"), [(384, 64), (192, 64), (768, 64), (1024, 64), (384, 48), (100, 68)]
)
def test_merges_take_one_launch_where_the_kernels_do(width: int, head: int, chip: Chip) -> None:
    """Tokens, images and widths over each boundary of the rule, in both lengths of an element."""
    found = set()
    for tokens, batch, item in itertools.product(
        (34, 129, 197, 257, 401, 512, 520, 577), (1, 2, 8, 9, 22), (2, 4)
    ):
        for job in jobs.jobs(Block(tokens, width, head), batch):
            if job.operator == "TokenMerge":
                job = replace(job, item=item, attributes={**job.attributes, "type": 10 if item == 2 else 1})
                with kernels.gpu(chip.capability, chip.multiprocessors):
                    wanted = started(job)
                assert told(job.on(chip).launches) == wanted, (tokens, batch, item, job.setting)
                found.add(len(wanted))
    assert found == ({1, 2} if chip.cluster else {2})


@needs_compiler
def test_images_that_the_workspace_does_not_hold_take_their_turn() -> None:
    asked = {"keep": [4000], "remove": [96], "linkage": 2}
    job = jobs.Job("TokenCluster", "", [(20, 4096, 64)], asked)
    assert told(job.work.launches) == started(job)
    assert len(job.work.launches) == 4


@needs_compiler
@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("tokens", [40, 513, 1025, 4097, 4098])
@pytest.mark.parametrize("batch", [1, 9])
def test_choices_one_after_the_other(tokens: int, seed: int, batch: int) -> None:
    """Cosines of all pairs up to 4,096 free tokens, of as many images at once as fit; above, all rows again."""
    asked = {"keep": [9], "protect": [1], "order": 0, "power": 1.0, "mix": 0.5}
    shapes = [(batch, tokens, 64), (batch, tokens)]
    greedy = jobs.Job("TokenGreedySelect", "", shapes, {**asked, "objective": 1, "seed": seed})
    damped = {"keep": [9], "protect": [1], "order": 0, "mix": 0.5, "epsilon": 1e-6}
    determinant = jobs.Job("TokenDeterminantSelect", "", shapes, damped)
    every = (greedy, jobs.Job("TokenCoverSelect", "", shapes, asked), determinant)
    for job in every if tokens <= 4096 else every[:2]:
        assert told(job.work.launches) == started(job), job.operator


@needs_compiler
def test_a_table_that_says_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenrt.perf.cost import merging

    monkeypatch.setattr(merging, "MATCH_LARGE", 1024)
    job = next(job for job in jobs.jobs(ODD[2], 1) if job.operator == "TokenMatch")
    assert told(job.work.launches) != started(job)


def test_every_kernel_is_in_the_table_and_in_the_jobs() -> None:
    assert operators.OPERATORS.keys() == KERNELS.keys()
    assert {job.operator for job in jobs.jobs(ODD[0], 1)} == KERNELS.keys()
    with pytest.raises(UnsupportedError, match="TokenX has no plugin; plugins: TokenSelect"):
        operators.work("TokenX", [], {})


def test_attributes_are_those_of_the_nodes() -> None:
    for job in jobs.jobs(ODD[0], 1):
        assert_settled(job.operator, job.attributes)


def assert_settled(operator: str, attributes: Mapping[str, Any]) -> None:
    assert NODES[operator].settle(attributes).keys() >= attributes.keys(), operator
