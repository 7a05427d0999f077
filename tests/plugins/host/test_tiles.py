"""The layout of tiles in shared memory: no two lanes of a warp wait for the same bank."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.plugins.helpers.running import needs_compiler
from tokenrt.plugins.toolchain.compiler import compiled


@needs_compiler
def test_stores_and_reads_of_a_tile_meet_in_no_bank() -> None:
    program = compiled(Path(__file__).with_name("tile_banks.cpp"), (), "tile_banks")
    told = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in told.splitlines()]
    assert [(kind, int(tile)) for kind, tile, *_ in lines] == [
        ("float32", 32), ("float32", 64), ("float16", 32), ("float16", 64), ("distances", 32)
    ]  # fmt: skip
    for kind, tile, stores, reads, whole in lines:
        assert (stores, reads) == ("1", "1"), (kind, tile)
        assert whole == "1"  # every row has a place of its own
