"""Which backend a replay runs on, whether its pool fits, and the session that it runs in."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyserve_viz.core.errors import ConfigError, GpuUnavailable, KernelError
from tinyserve_viz.core.toolkit import OLDEST_GPU
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.kernels.session import HostSession, Session

if TYPE_CHECKING:
    from tinyserve_viz.recording.header import Header

BACKENDS = ("auto", "numpy", "cuda")
_WORKSPACE = 256 << 20  # bytes beside the pool, for results, staging and what kernels need on the way


@dataclass(frozen=True, slots=True)
class Chosen:
    """A backend, the device behind it, bytes free there (None: not asked), and why it is not the other one."""

    name: str
    device: str
    free_bytes: int | None = None
    why: str = ""


def choose_backend(wanted: str) -> Chosen:
    """`cuda` or `numpy`; `auto` takes CUDA where a GPU, PyCUDA and a compiler are, else NumPy, and says why.

    Raises:
        GpuUnavailable: `cuda` is wanted and cannot be had; the message says what mends it.
        ConfigError: there is no such backend.
    """
    host = f"{platform.machine()} CPU"
    if wanted not in BACKENDS:
        raise ConfigError(f"unknown backend {wanted!r}; known: {', '.join(BACKENDS)}")
    if wanted == "numpy":
        return Chosen("numpy", host)
    try:
        return _cuda()
    except GpuUnavailable as error:
        if wanted == "cuda":
            raise
        return Chosen("numpy", host, why=str(error).split("; ")[0])


def _cuda() -> Chosen:
    from tinyserve_viz.core.toolkit import find_nvcc
    from tinyserve_viz.kernels.cuda_backend import gpu

    os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")  # a kernel's first launch must not wait for the device
    device = gpu()
    if (capability := int(device.arch[3:])) < OLDEST_GPU[0] * 10 + OLDEST_GPU[1]:
        raise GpuUnavailable(
            f"{device.name} has compute capability {capability // 10}.{capability % 10}, expected "
            f"{OLDEST_GPU[0]}.{OLDEST_GPU[1]} or newer; use --backend numpy"
        )
    try:
        find_nvcc()
    except KernelError as error:
        raise GpuUnavailable(f"{error}; or use --backend numpy") from None
    with device.current() as driver:
        free, _ = driver.mem_get_info()
    return Chosen("cuda", device.name, int(free))


def pool_bytes(header: Header) -> int:
    """Bytes of K, V and boxes of all blocks and layers, fp16, and of the blocks' counters."""
    model, engine = header.model, header.engine
    box = 4 * model.num_layers * model.num_kv_heads * model.head_dim
    return engine.num_blocks * (engine.block_size * model.token_bytes + box + 25)


def misfit(header: Header, chosen: Chosen) -> str:
    """Why the pool does not fit on the device, in words with what would; nothing when it fits or nobody knows."""
    needed = pool_bytes(header) + _WORKSPACE
    if chosen.free_bytes is None or needed <= chosen.free_bytes:
        return ""
    engine = header.engine
    most = (chosen.free_bytes - _WORKSPACE) * engine.num_blocks // pool_bytes(header)
    return (
        f"the pool of {engine.num_blocks:,} blocks needs {needed >> 20:,} MiB of GPU memory, "
        f"{chosen.free_bytes >> 20:,} MiB are free on {chosen.device}"
        + (f"; --num-blocks {most} would fit" if most > 0 else "")
    )


def open_session(header: Header) -> Session:
    """The session of a replay, in the thread that calls.

    Raises:
        GpuUnavailable: a kernel must be compiled and there is no compiler.
        KernelError: a kernel does not compile.
    """
    origin = header.origin
    if origin["backend"] == "numpy":
        return HostSession(NumpyBackend(), origin["device"])
    from tinyserve_viz.kernels.build import build_all
    from tinyserve_viz.kernels.cuda_backend import gpu
    from tinyserve_viz.kernels.cuda_device import CudaDevice
    from tinyserve_viz.kernels.cuda_session import CudaSession
    from tinyserve_viz.kernels.verified_session import VerifiedSession

    for build in build_all([gpu().arch]):  # all at once what is not in the cache: minutes one after the other
        if isinstance(build, KernelError):
            raise build
    session: Session = CudaSession(CudaDevice(gpu()), origin["time_repeat"])
    return session if origin["verify"] == "off" else VerifiedSession(session)
