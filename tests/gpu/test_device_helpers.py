"""The device helpers of cuda/*.cuh on a GPU, each in a test kernel of its own, against NumPy bit for bit."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.core.toolkit import find_nvcc
from tinyserve_viz.kernels import build
from tinyserve_viz.kernels.cuda_backend import CudaBackend
from tinyserve_viz.kernels.decision_math import LANES, decision_exp2, decision_log2, lane_sum, permille
from tinyserve_viz.kernels.defs.fused_block_copy import COPY_THREADS, PIECE_BYTES

SOURCE = Path(__file__).with_name("device_helpers.cu")
OPTIONS = (*build.OPTIONS, *build.DECISION_OPTIONS)
ARCHS = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
F = np.float32
PIECE_HALFS = PIECE_BYTES // 2
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754942e-38, 1.1754944e-38, 3.4028235e38, -3.4028235e38, np.inf, -np.inf,
     np.nan, 0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 127.99999, 128.0, 128.00002, -125.5, -126.0, -126.5, -149.0, -149.5,
     -150.0, -150.00002, -151.0, 0.70710677, 0.7071068, 0.70710683, 1.4142135, 1.4142137, 2.0, 0.9999999, 1.0000001],
    F,
)  # fmt: skip


def has_nvcc() -> bool:
    try:
        find_nvcc()
    except KernelError:
        return False
    return shutil.which("gcc") is not None


@pytest.mark.slow
@pytest.mark.skipif(not has_nvcc(), reason="nvcc or its host compiler is not here")
@pytest.mark.parametrize("arch", ARCHS)
def test_the_test_kernels_compile_without_spills(arch: str) -> None:
    made = build.compile_file(SOURCE, arch, options=OPTIONS)
    assert made.spill_bytes == 0
    assert Path(made.cubin).read_bytes()[:4] == b"\x7fELF"


class Helpers:
    """The test kernels on the device."""

    def __init__(self, cuda: CudaBackend) -> None:
        self.gpu = cuda.gpu
        cubin = build.compile_file(SOURCE, cuda.gpu.arch, options=OPTIONS).cubin
        with self.gpu.current() as driver:
            self.module = driver.module_from_file(cubin)

    def run(self, name: str, out: NDArray[Any], blocks: int, threads: int, *arguments: Any) -> NDArray[Any]:
        """Launch with arrays (copied to the device) and NumPy scalars; `out` is written and returned.

        An argument that is None stands for `out`, which holds 0x7f in every byte before.
        """
        out.view(np.uint8)[...] = 0x7F
        with self.gpu.current() as driver:
            held = [out if argument is None else argument for argument in arguments]
            arrays = {i: driver.to_device(value) for i, value in enumerate(held) if isinstance(value, np.ndarray)}
            function = self.module.get_function(name)
            given = [arrays.get(i, value) for i, value in enumerate(held)]
            function(*given, block=(threads, 1, 1), grid=(blocks, 1))
            driver.memcpy_dtoh(out, arrays[next(i for i, argument in enumerate(arguments) if argument is None)])
            for memory in arrays.values():
                memory.free()
        return out


@pytest.fixture(scope="module")
def helpers(cuda: CudaBackend) -> Helpers:
    return Helpers(cuda)


def same_bits(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal bit for bit; the first place where they are not is shown."""
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[found.dtype.itemsize]
    assert found.dtype == expected.dtype
    wrong = np.argwhere(found.view(bits) != expected.view(bits))
    assert not len(wrong), f"{len(wrong)} of {found.size} differ, first at {wrong[0]}: {found[tuple(wrong[0])]}"


def same_but_for_nan_payload(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal bit for bit, or both NaN: hardware additions make a NaN of their own."""
    both = np.isnan(found) & np.isnan(expected)
    same_bits(np.where(both, F(0), found), np.where(both, F(0), expected))


COUNTS = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 257, 1000, 2048, 4079]


def moved(helpers: Helpers, name: str, counts: list[int], room: int, threads: int) -> None:
    """Every pair of alignments from 0 to 8 halfs with each of `counts`, in and out of arrays of `room` halfs."""
    cases = np.array(list(product(range(9), range(9), counts)), np.int32)
    rng = np.random.default_rng(threads)
    source = rng.integers(0, 1 << 16, room, dtype=np.uint16)  # every bit pattern, infinities and NaN among them
    source[:4] = [0x7C00, 0xFC00, 0x7E01, 0x8000]
    poison = np.uint16(0x5A5A if name == "loads" else 0x7F7F)
    out = np.empty((len(cases), room), np.uint16)
    last = poison if name == "loads" else np.int32(room)
    found = helpers.run(name, out, len(cases), threads, source, cases, None, last)
    expected = np.full_like(found, poison)
    for row, (start, target, count) in zip(expected, cases, strict=True):
        row[target : target + count] = source[start : start + count]
    same_bits(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("threads", [*range(1, 33), 33, 63, 64, 96, 128, 255, 256, 1000, 1024])
def test_a_load_moves_what_it_was_asked_for_and_nothing_else(helpers: Helpers, threads: int) -> None:
    """Lengths around each multiple of a 16-byte vector."""
    moved(helpers, "loads", COUNTS, 4096, threads)


@pytest.mark.gpu
def test_a_copy_moves_what_it_was_asked_for_and_nothing_else(helpers: Helpers) -> None:
    """The same lengths, and those around one, two and three pieces."""
    pieces = [count * PIECE_HALFS + more for count in (1, 2, 3) for more in (-9, -8, -1, 0, 1, 8, 9)]
    moved(helpers, "copies", COUNTS + pieces, 3 * PIECE_HALFS + 32, COPY_THREADS)


def rows_of_lanes() -> NDArray[np.float32]:
    """Rows of 32 lanes: as many lanes with a value as each number from 0 to 32 says, special values in every lane."""
    rng = np.random.default_rng(7)
    rows = []
    for lanes in range(33):
        for scale in (1.0, 1e30, 1e-40):
            row = np.zeros(LANES, F)
            row[:lanes] = rng.standard_normal(lanes) * scale
            rows.append(row)
    for special, lane in product(SPECIAL, range(LANES)):
        row = rng.standard_normal(LANES).astype(F)
        row[lane] = special
        rows.append(row)
    for a, b in product(SPECIAL, SPECIAL):
        row = rng.standard_normal(LANES).astype(F)
        row[rng.choice(LANES, 2, replace=False)] = a, b
        rows += [row, np.full(LANES, a, F)]
    return np.array(rows, F)


@pytest.mark.gpu
def test_a_warp_maximum_ignores_nan_and_reaches_every_lane(helpers: Helpers) -> None:
    rows = rows_of_lanes()
    rows[:99][rows[:99] == 0] = -np.inf  # lanes without a value hold the identity
    found = helpers.run("warp_maxima", np.empty_like(rows), len(rows), LANES, rows, None)
    expected = np.fmax.reduce(rows, axis=1)
    positive_zero = ((rows == 0) & ~np.signbit(rows)).any(axis=1)
    expected[(expected == 0) & positive_zero] = 0.0  # +0 is above -0
    expected[(expected == 0) & ~positive_zero] = -0.0
    same_but_for_nan_payload(found, np.repeat(expected[:, None], LANES, axis=1))


@pytest.mark.gpu
def test_a_warp_sum_adds_in_the_order_of_decisions_and_reaches_every_lane(helpers: Helpers) -> None:
    rows = rows_of_lanes()
    found = helpers.run("warp_sums", np.empty_like(rows), len(rows), LANES, rows, None)
    expected = rows
    with np.errstate(all="ignore"):
        for width in (16, 8, 4, 2, 1):
            expected = expected + expected[:, np.arange(LANES) ^ width]
    same_but_for_nan_payload(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [*range(1, 34), 63, 64, 65, 80, 96, 100, 127, 128, 129, 256, 1000, 1025])
def test_a_lane_sum_of_any_length_is_that_of_the_reference(helpers: Helpers, length: int) -> None:
    rng = np.random.default_rng(length)
    values = (rng.standard_normal((64, length)) * 10.0 ** rng.integers(-30, 30, (64, 1))).astype(F)
    for row, special in enumerate(SPECIAL):
        values[row, rng.integers(length)] = special
    values[-1] = -0.0
    found = helpers.run("lane_sums", np.empty((64, LANES), F), 64, LANES, values, None, np.int32(length))
    with np.errstate(all="ignore"):
        expected = lane_sum(values)
    same_but_for_nan_payload(found, np.repeat(expected[:, None], LANES, axis=1))


def many_floats() -> NDArray[np.float32]:
    """A million fp32 bit patterns at a stride that is prime, and the special values with their neighbours."""
    spread = np.arange(0, 1 << 32, 4093, dtype=np.uint64).astype(np.uint32).view(F)
    near = [np.nextafter(SPECIAL, F(towards)) for towards in (-np.inf, np.inf)]
    half_steps = np.arange(-160, 140, 0.5).astype(F)  # ties of the rounding to whole exponents
    powers = np.ldexp(F(1), np.arange(-149, 128)).astype(F)
    return np.concatenate([spread, SPECIAL, *near, half_steps, powers, -powers])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["exp2s", "log2s"])
def test_the_decision_polynomials_give_the_bits_of_the_reference(helpers: Helpers, name: str) -> None:
    with np.errstate(all="ignore"):
        values = many_floats()
        expected = {"exp2s": decision_exp2, "log2s": decision_log2}[name](values)
    blocks = -(-len(values) // 256)
    found = helpers.run(name, np.empty_like(values), blocks, 256, values, None, np.int32(len(values)))
    assert not np.signbit(found[np.isnan(found)]).any()
    same_bits(found, expected)


@pytest.mark.gpu
def test_per_mille_integers_become_the_nearest_quotient(helpers: Helpers) -> None:
    values = np.concatenate([np.arange(-2000, 20_000), [2**31 - 1, -(2**31), 2**24 + 1]]).astype(np.int32)
    found = helpers.run("permilles", np.empty(len(values), F), 100, 256, values, None, np.int32(len(values)))
    same_bits(found, np.array([permille(int(value)) for value in values], F))


@pytest.mark.gpu
@pytest.mark.parametrize("threads", [32, 64, 96, 256, 512, 992, 1024])
def test_a_scan_over_a_thread_block_keeps_64_bits(helpers: Helpers, threads: int) -> None:
    rng = np.random.default_rng(threads)
    for high in (2, 1 << 20, 1 << 52):
        values = rng.integers(-high, high, threads)
        found = helpers.run("block_scans", np.empty((5, threads), np.int64), 1, threads, values, None)
        odd = values & 1
        whole = [np.full(threads, number) for number in (values.sum(), values.max(), odd.sum())]
        same_bits(found, np.stack([np.cumsum(values) - values, whole[0], whole[1], np.cumsum(odd) - odd, whole[2]]))


@pytest.mark.gpu
@pytest.mark.parametrize("blocks", [1, 2, 131, 1000])
def test_one_thread_block_is_the_last_to_arrive_and_sees_all_others(helpers: Helpers, blocks: int) -> None:
    with helpers.gpu.current() as driver:
        counter, seen = (driver.to_device(np.zeros(3, np.int32)) for _ in range(2))
        for launch in (1, 2):  # the counter is zero again behind the first
            helpers.module.get_function("arrivals")(counter, seen, block=(64, 1, 1), grid=(blocks, 1))
            found = driver.from_device(seen, 3, np.int32)
            assert found.tolist() == [launch * blocks, launch * blocks, launch]
        assert driver.from_device(counter, 1, np.int32)[0] == 0
        counter.free()
        seen.free()
