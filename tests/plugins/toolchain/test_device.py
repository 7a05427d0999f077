"""The kernels compiled by nvcc: no warning, no spilled register, no stack, 16-byte access where rows allow it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tokenrt.errors import BuildError, TokenrtError
from tokenrt.plugins.host.launches import KERNELS
from tokenrt.plugins.toolchain import device, nvcc, occupancy, sass

USUAL = 89
"""The architecture that `make test` compiles for; the others are slow."""

ARCHITECTURES = [
    pytest.param(arch, marks=() if arch == USUAL else pytest.mark.slow) for arch in nvcc.ARCHITECTURES
]


@pytest.fixture(autouse=True, scope="module")
def needs_nvcc() -> None:
    try:
        nvcc.toolkit().tool("cuobjdump")
    except TokenrtError as missing:
        pytest.skip(str(missing))


VECTORS: Mapping[str, Callable[[list[str]], bool]] = {
    "combine::merge": lambda arguments: arguments[1] != "1",
    "combine::merge_pairs": lambda arguments: arguments[1] != "1",
    "combine::merge_image": lambda arguments: True,
    "gather::copy_rows": lambda arguments: arguments[0] == "uint4",
}
"""Kernels that read rows -> which of their forms, by template arguments, read them 16 bytes at a time. Where the last
argument is kWhole, true for rows of whole 16-byte vectors, it need not be named here."""

CLUSTERS = {"combine::merge_image"}
"""Kernels for clusters of blocks, which have a body from 9.0 on. Rows that are no whole vectors go to other kernels."""

NARROW: Mapping[str, str] = {
    "cluster::merge": "one number a pair of clusters, and a row of N need not start on 16 bytes",
    "medoids::begin": "one number a centre",
    "medoids::move": "one number a token",
    "nearest::settle": "a distance and a place a token and stretch: neighbours read neighbouring ones",
    "peaks::density_by_rows": "a row of distances: neighbours read neighbouring numbers",
    "peaks::gaps_by_rows": "a row of distances: neighbours read neighbouring numbers",
    "peaks::assign_by_rows": "distances through a list of positions",
    "peaks::own": "one number a centre",
    "peaks::rate": "one number a token",
    "select::by_group": "one number a token, and a group need not start on 16 bytes",
    "cover::bounds_by_rows": "a row of cosines: neighbours read neighbouring numbers",
    "cover::choose_by_rows": "a row of cosines: neighbours read neighbouring numbers",
    "determinant::choose": "rows of the kernel and of its factor: neighbours read neighbouring numbers",
    "greedy::choose_by_rows": "a row of cosines: neighbours read neighbouring numbers",
    "match::finish": "a value and a place a source and stretch: neighbours read neighbouring ones",
    "match::rank": "a value and a place a source and stretch, staged in shared memory",
    "match::arrange": "lists of one number a token",
    "rounds::arrange": "a distance and a place a token and stretch, staged in shared memory",
    "score::few_mean": "one thread a token: neighbours read neighbouring numbers",
    "select::by_position": "one number a token, and a row need not start on 16 bytes",
    "select::sorted": "one number a token, each once, and a row need not start on 16 bytes",
    "select::by_score": "scores through a list of positions",
}
"""Kernels that have no such form, and what they read instead."""


def wide(plain: str, arguments: list[str]) -> bool | None:
    """Whether a kernel is to read 16 bytes at a time; None where it has no such form."""
    if plain in VECTORS:
        return VECTORS[plain](arguments)
    return arguments[-1] == "true" if arguments and arguments[-1] in ("true", "false") else None


def named(symbols: Mapping[str, object]) -> dict[str, tuple[str, list[str]]]:
    """Mangled name -> name without and list of template arguments."""
    found = {}
    for symbol, name in device.readable(list(symbols)).items():
        plain, _, rest = name.partition("<")
        found[symbol] = plain, re.split(r",\s*(?![^<]*>)", rest.removesuffix(">")) if rest else []
    return found


@functools.cache
def listing(arch: int) -> Mapping[str, tuple[sass.Instruction, ...]]:
    """The instructions of every kernel."""
    return {
        symbol: code
        for operator in device.kernels(arch)
        for symbol, code in sass.listing(operator.code).items()
    }


def check_rows(code: Mapping[str, tuple[sass.Instruction, ...]]) -> None:
    """Every kernel that reads rows reads them 16 bytes at a time in one form, and by elements in the other."""
    names = named(code)
    forms: dict[str, set[bool | None]] = {}
    for symbol, (plain, arguments) in names.items():
        widths = {line.bits for line in sass.looped(code[symbol]) if line.name.startswith("LDG")}
        wanted = wide(plain, arguments)
        forms.setdefault(plain, set()).add(wanted)
        reads = any(line.name.startswith("LDG") for line in code[symbol])
        if wanted is not None and (reads or plain not in CLUSTERS):
            assert (128 in widths) == wanted, (
                f"{plain}<{', '.join(arguments)}> reads {sorted(widths)} bits in loops"
            )
    assert all(found == {True, False} for plain, found in forms.items() if plain not in (*NARROW, *CLUSTERS))
    unknown = [plain for plain, found in forms.items() if found == {None} and plain not in NARROW]
    assert not unknown, "say in VECTORS or NARROW how these read"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_without_warning_spill_or_stack(arch: int) -> None:
    if arch in nvcc.toolkit().dropped:
        pytest.skip(f"nvcc {nvcc.toolkit().version} does not know sm_{arch}")
    operators = device.kernels(arch)
    assert len(operators) == len(KERNELS)
    for operator in operators:
        declared = {entry.symbol: entry for entry in operator.entries}
        assert {usage.symbol for usage in operator.usages} == declared.keys()
        assert len(declared) >= 3  # one for each type
        for usage in operator.usages:
            assert (usage.stack, usage.spilled) == (0, 0), usage
            threads = declared[usage.symbol].threads
            assert threads is not None, f"{usage.symbol} has no launch bounds"
            assert occupancy.blocks(arch, threads, usage.registers, usage.shared) >= 1


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_are_read_16_bytes_at_a_time(arch: int) -> None:
    if arch in nvcc.toolkit().dropped:
        pytest.skip(f"nvcc {nvcc.toolkit().version} does not know sm_{arch}")
    check_rows(listing(arch))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_lanes_that_share_a_bin_of_a_histogram_are_counted_at_once(arch: int) -> None:
    """An addition that knows its summand and not its result is one instruction for all lanes with one address."""
    if arch == 75:
        pytest.skip("Turing adds them one by one")
    if arch in nvcc.toolkit().dropped:
        pytest.skip(f"nvcc {nvcc.toolkit().version} does not know sm_{arch}")
    code = listing(arch)
    for symbol, (plain, _) in named(code).items():
        if plain in ("select::by_position", "select::by_group"):
            atomics = {line.name for line in code[symbol] if line.name.startswith(("ATOM", "RED"))}
            assert atomics == {"ATOMS.POPC.INC.32"}, (plain, atomics)


@pytest.mark.parametrize(
    "kernel",
    [
        "match::similarity",
        "score::row_statistics",
        "score::column_sums",
        "greedy::isolation",
        "gram::cosines",
    ],
)
def test_tiles_are_multiplied_from_16_byte_reads_of_shared_memory(kernel: str) -> None:
    code = listing(USUAL)
    for symbol, (plain, _) in named(code).items():
        if plain == kernel and not any(line.name.startswith("HMMA") for line in code[symbol]):
            inner = min(
                (loop for loop in sass.loops(code[symbol]) if _count(code[symbol], loop, "FFMA") >= 64),
                key=len,
            )
            assert _count(code[symbol], inner, "LDS.128") * 8 <= _count(code[symbol], inner, "FFMA")
            assert _count(code[symbol], inner, "LDS.128") == _count(code[symbol], inner, "LDS")


ROUNDED = ("score::row_statistics", "score::column_sums", "gram::cosines", "cluster::compare")
"""Kernels whose results may be rounded otherwise, but for near ties."""


def multiplies_on_tensor_cores(plain: str, arguments: list[str]) -> bool:
    """By template arguments: rows of whole vectors; of a score and of cosines that are kept, of halves."""
    if plain in CLUSTERS:
        return True
    whole = bool(arguments) and arguments[-1] == "true"
    if plain == "match::similarity":
        return whole and arguments[-2] == "true"
    return whole and plain in ROUNDED and arguments[0] != "float"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tensor_cores_multiply_from_fragments_that_were_copied_past_the_registers(arch: int) -> None:
    """Not on Turing, which has no such copies and other steps."""
    if arch in nvcc.toolkit().dropped:
        pytest.skip(f"nvcc {nvcc.toolkit().version} does not know sm_{arch}")
    code = listing(arch)
    for symbol, (plain, arguments) in named(code).items():
        inner = sass.looped(code[symbol])
        found = {
            name: [line for line in inner if line.name.startswith(name)]
            for name in ("HMMA", "LDSM", "LDGSTS")
        }
        if plain in CLUSTERS:
            waits = [line for line in code[symbol] if line.name.startswith("UCGABAR")]
            assert bool(waits) == (arch >= 90)
        if arch < (90 if plain in CLUSTERS else 80) or not multiplies_on_tensor_cores(plain, arguments):
            assert not any(found.values()), plain
        else:
            steps = 4  # of a slice
            assert (len(found["HMMA"]), len(found["LDSM"])) == (4 * steps, 3 * steps), plain
            assert {line.bits for line in found["LDGSTS"]} == {128}


@pytest.mark.parametrize("kernel", ["score::few", "greedy::choose", "cover::choose"])
def test_the_row_that_all_share_is_read_16_bytes_at_a_time(kernel: str) -> None:
    code = listing(USUAL)
    forms = [
        symbol for symbol, (plain, given) in named(code).items() if plain == kernel and given[-1] == "true"
    ]
    assert len(forms) == (
        12 if kernel == "score::few" else 3
    )  # a form a type, and two widths and lengths of a score
    for symbol in forms:
        assert {line.bits for line in sass.looped(code[symbol]) if line.name.startswith("LDS")} == {128}


def _count(code: tuple[sass.Instruction, ...], loop: range, name: str) -> int:
    return sum(line.address in loop and line.name.startswith(name) for line in code)


def test_a_kernel_that_spills_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "spills.cu"
    source.write_text("""
extern "C" __global__ void __launch_bounds__(1024, 2) spills(float* x) {
    float held[48];
    for (int i = 0; i < 48; ++i) held[i] = x[threadIdx.x + 1024 * i];
    for (int turn = 0; turn < 8; ++turn)
#pragma unroll
        for (int i = 0; i < 48; ++i) held[i] = held[i] * held[(i * 7 + 5) % 48] + held[(i + 1) % 48];
    for (int i = 0; i < 48; ++i) x[threadIdx.x + 1024 * i] = held[i];
}
""")
    with pytest.raises(BuildError, match="spill"):
        device.machine_code(USUAL, source)


def test_a_warning_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "warns.cu"
    source.write_text("__global__ void warns(int* x) { int unused = 1; *x = 2; }\n")
    with pytest.raises(BuildError, match=r"refused \S+/warns\.cu"):
        device.ptx(USUAL, source)


def test_entries_of_ptx_are_read() -> None:
    text = """
.visible .entry one(
    .param .u64 .ptr .align 1 one_param_0,
    .param .align 8 .b8 one_param_1[64],
    .param .f32 one_param_2
)
.maxntid 256, 1, 1
.minnctapersm 2
{ ret; }
.weak .entry two()
{ ret; }
"""
    assert device.entries(text) == (device.Entry("one", (8, 64, 4), 256), device.Entry("two", (), None))


def test_loops_of_machine_code_are_read() -> None:
    text = """
        Function : one
    /*0000*/       S2R R0, SR_TID.X ;                        /* 0x0000000000007919 */
                                                             /* 0x000e280000002100 */
    /*0010*/  @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ; /* 0x0000000000007919 */
    /*0020*/   @P0 BRA 0x10 ;                                /* 0x0000000000007919 */
    /*0030*/       LDG.E.U16 R4, [R2.64] ;                   /* 0x0000000000007919 */
    /*0040*/       BRA 0x40 ;                                /* 0x0000000000007919 */
    /*0050*/       LDGSTS.E.BYPASS.128 [R4], [R2.64] ;       /* 0x0000000000007919 */
"""
    code = sass.read(text)["one"]
    assert [(line.address, line.name, line.bits) for line in code] == [
        (0, "S2R", 0), (16, "LDG.E.128.CONSTANT", 128), (32, "BRA", 0), (48, "LDG.E.U16", 16), (64, "BRA", 0),
        (80, "LDGSTS.E.BYPASS.128", 128),
    ]  # fmt: skip
    assert [line.address for line in sass.looped(code)] == [16, 32]
