"""Whole replays on a device made of memory: everything of a CUDA session but the GPU."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from tests.kernels.memory_device import MemoryDevice
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.errors import DeviceLost, KernelError, OutOfDeviceMemory
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.engine.pipeline import KernelPipeline, PipelineConfig
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.kernels.cuda_backend import Gpu
from tinyserve_viz.kernels.cuda_session import CudaSession
from tinyserve_viz.kernels.session import Session
from tinyserve_viz.kernels.verified_session import VerifiedSession
from tinyserve_viz.recording.recorder import Digest
from tinyserve_viz.trace import read_trace
from tinyserve_viz.trace.request import Request, Trace

TRACES = data_folder("traces")


def replay(
    device: MemoryDevice, name: str = "quickstart", repeat: int = 1, steps: int = 1 << 30, **config: Any
) -> tuple[str, list[ev.Event], KernelPipeline, Session]:
    """Digest, events, pipeline and session of a replay on `device`."""
    header = prepare(read_trace(TRACES / f"{name}.json"), Settings())
    digest, events = Digest(), list[ev.Event]()

    def sink(step: int, event: ev.Event) -> None:
        digest.add(step, event)
        events.append(event)

    session: Session = CudaSession(device, repeat)
    if config.get("verify", "every") != "off":
        session = VerifiedSession(session)
    engine = Engine(header.workload, header.engine, header.rules, sink)
    engine.kernels = KernelPipeline(
        engine.state, header.engine, header.model, header.content, session, PipelineConfig(**config)
    )
    while steps and engine.step():
        steps -= 1
    return digest.hexdigest(), events, engine.kernels, session


@pytest.fixture(scope="module")
def expected() -> str:
    return str(run_replay(prepare(read_trace(TRACES / "quickstart.json"), Settings()))["digest"])


@pytest.mark.parametrize("verify", ["every", "sample", "off"])
def test_the_digest_is_that_of_numpy_and_nothing_is_left_allocated(verify: str, expected: str) -> None:
    device = MemoryDevice()
    digest, _, kernels, session = replay(device, verify=verify)
    assert digest == expected
    assert kernels.violations == []
    session.close()
    assert device.num_open == 0
    assert device.closed


def test_steps_become_graphs_and_come_back_in_few_copies() -> None:
    device = MemoryDevice()
    _, events, _, _ = replay(device, verify="off")
    steps = sum(isinstance(event, ev.StepEnded) for event in events)
    assert device.counts["replay"] > steps
    assert device.counts["capture"] < 20
    # One copy with the status words a step, few others where a memory kernel's answer is looked at.
    assert device.counts["download"] < 2 * steps


def test_a_warm_step_is_two_graphs_and_one_wait() -> None:
    device = MemoryDevice()
    header = prepare(Trace("t", "json", requests=(Request("r", 0, 20, 40),)), Settings(kernels="none"))
    engine = Engine(header.workload, header.engine, header.rules, lambda _step, _event: None)
    engine.kernels = KernelPipeline(
        engine.state, header.engine, header.model, header.content, CudaSession(device), PipelineConfig(verify="off")
    )
    while engine.state.ctx[0] < 24:
        engine.step()
    before = device.counts.copy()
    for _ in range(8):  # none of these starts a block
        engine.step()
    spent = device.counts - before
    assert {name: spent[name] for name in ("replay", "synchronize", "wait", "upload", "launch", "capture")} == {
        "replay": 16, "synchronize": 8, "wait": 8, "upload": 0, "launch": 0, "capture": 0,
    }  # fmt: skip


def test_choices_come_back_before_attention_has_run() -> None:
    class Watching(MemoryDevice):
        run: list[str]

        def _run(self, kernel: Any, arguments: Any) -> None:
            super()._run(kernel, arguments)
            self.run.append(kernel.name)

        def wait_for(self, event: list[float]) -> None:
            self.run = []
            super().wait_for(event)
            assert "cache_selection" in self.run
            assert "block_mass" in self.run
            assert "flash_paged_attention" not in self.run

    device = Watching()
    device.run = []
    _, events, _, _ = replay(device, steps=30, verify="off")
    assert device.counts["wait"] > 20
    assert "flash_paged_attention" in " ".join(e.names for e in events if isinstance(e, ev.KernelsTimed))


def test_every_call_is_repeated_when_verified_and_a_wrong_answer_is_told() -> None:
    class Lying(MemoryDevice):
        def _run(self, kernel: Any, arguments: Any) -> None:
            super()._run(kernel, arguments)
            if kernel.name == "cache_selection":
                at = [arg.name for arg in kernel.args].index("row_score")
                self._array(arguments[at], [1], "float32")[0] += 1

    _, _, kernels, session = replay(MemoryDevice(), steps=30)
    assert isinstance(session, VerifiedSession)
    assert session.num_repeated > 100
    assert session.num_mismatches == 0
    _, _, kernels, session = replay(Lying(), steps=30)
    assert isinstance(session, VerifiedSession)
    assert session.num_mismatches > 0
    assert {v.invariant for v in kernels.violations} == {"verify"}
    assert kernels.violations[0].message.startswith("cache_selection differs from the reference: row_score[0] is ")


def test_a_wrong_write_to_the_cache_is_told_by_the_block_that_it_hit() -> None:
    class Smearing(MemoryDevice):
        def _run(self, kernel: Any, arguments: Any) -> None:
            super()._run(kernel, arguments)
            if kernel.name == "fused_reshape_and_block_write":
                at = [arg.name for arg in kernel.args].index("value_cache")
                self._array(arguments[at], [1], "float16")[0] = 7

    _, _, kernels, _ = replay(Smearing(), steps=5)
    assert any("value_cache[0, 0, 0, 0, 0] is 7.0" in v.message for v in kernels.violations)


def test_times_are_measured_and_host_time_stands_beside_them() -> None:
    _, events, _, _ = replay(MemoryDevice(), steps=40)
    timed = [event for event in events if isinstance(event, ev.KernelsTimed)]
    assert {event.provenance for event in timed} == {"measured"}
    assert all((event.total_us > 0).all() for event in timed)
    assert all(event.host_us > 0 and event.verify_us > 0 for event in timed)


def test_repeated_timing_runs_on_copies_and_changes_nothing(expected: str) -> None:
    device = MemoryDevice()
    digest, _, kernels, session = replay(device, repeat=3, verify="off")
    assert digest == expected
    assert kernels.violations == []
    session.close()
    assert device.num_open == 0


def test_a_lost_device_is_told_once_and_closing_it_is_quiet() -> None:
    device = MemoryDevice(fail_at="flash_paged_attention")
    with pytest.raises(DeviceLost, match=r"^memory failed to launch flash_paged_attention: an illegal memory access"):
        replay(device, verify="off")
    assert device.lost


def test_nothing_of_a_lost_context_is_ever_cleaned_up() -> None:
    class Module:
        """Stands for PyCUDA's, which complains on stderr when it is cleaned up in a dead context."""

    gpu = object.__new__(Gpu)
    gpu.context, gpu._functions, gpu._modules = Module(), {("kernel", "entry"): Module()}, {"kernel": Module()}
    stream = Module()
    alive = [weakref.ref(one) for one in (gpu.context, *gpu._functions.values(), *gpu._modules.values(), stream)]
    gpu.abandon(stream)
    del gpu, stream
    gc.collect()
    assert all(one() is not None for one in alive)


def test_a_device_without_room_says_what_was_asked_for() -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"^out of GPU memory: \d+ MiB asked for"):
        replay(MemoryDevice(room=20 << 20))


def test_arrays_come_back_as_they_went_in_whatever_their_size() -> None:
    session = CudaSession(MemoryDevice())
    rng = np.random.default_rng(0)
    for shape, dtype in (((3,), "int64"), ((5, 1 << 20), "float16"), ((1 << 25,), "uint8"), ((0, 4), "int32")):
        array = rng.integers(0, 100, shape).astype(dtype)
        held = session.hold(array)
        np.testing.assert_array_equal(session.read(held)[0], array)
        if array.ndim == 2 and len(array):
            np.testing.assert_array_equal(session.read(session.part(held, 2))[0], array[2])
    pool = rng.standard_normal((2, 300, 4)).astype(np.float16)
    held = session.hold(pool)
    for blocks in (np.array([7, 0, 299]), np.arange(300), np.zeros(0, np.int64)):
        np.testing.assert_array_equal(session.read_blocks(held, blocks), pool[:, blocks])
    session.fill(held)
    assert not session.read(held)[0].any()
    session.drop(held)


def test_a_call_that_does_not_fit_is_refused_before_anything_runs() -> None:
    session = CudaSession(MemoryDevice())
    with pytest.raises(KernelError, match=r"^block_fork: forks is float32, expected int32$"):
        session.call("block_fork", {"forks": np.zeros((1, 3), np.float32)}, 0)
    with pytest.raises(KernelError, match=r"^block_fork: block_table is missing"):
        session.call("block_fork", {"forks": np.zeros((1, 3), np.int32)}, 0)
    with pytest.raises(KernelError, match=r"^no kernel takes an array of float64$"):
        session.call("block_fork", {"forks": np.zeros((1, 3))}, 0)
    assert session.end_step() == []


def test_a_session_belongs_to_the_thread_that_made_it() -> None:
    session = CudaSession(MemoryDevice())
    held = session.hold(np.zeros(3, np.int32))
    found: list[str] = []

    def use() -> None:
        try:
            session.read(held)
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == ["a CUDA session belongs to the thread that made it"]
