"""Hold a backend to the oracles: every kernel × every case, poisoned outputs, guard bands, status words.

The outcome is one of OK, FAIL and NOT SUPPORTED, as in ggml's test-backend-ops; a kernel that a backend lacks is shown,
never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import GpuUnavailable, KernelError
from tinyserve_viz.kernels.backend import Backend, UnsupportedError, kernel_named
from tinyserve_viz.kernels.binding import bind
from tinyserve_viz.kernels.definition import KernelDef, Status
from tinyserve_viz.kernels.guard import band_broken, guarded
from tinyserve_viz.kernels.oracles import ORACLES

Arrays = dict[str, NDArray[Any]]
Judge = Callable[[Arrays, Arrays, Arrays], str]

# |x - reference| <= absolute + relative·|reference|, for the outputs of attention; everything else is bit for bit.
TOLERANCES = {"output": (2e-3, 1e-2), "lse": (1e-3, 1e-3)}


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One call, made anew on every use, and the status it must give; `why` says what it is there to catch.

    `judge(inputs, expected, found)` replaces the comparison where several outcomes are right; it returns what is wrong.
    """

    kernel: str
    name: str
    why: str
    make: Callable[[], tuple[Arrays, dict[str, Any]]]
    status: Status = Status.OK
    judge: Judge | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of one case on one backend; `detail` says what differed, or why the case was not run."""

    backend: str
    kernel: str
    case: str
    outcome: str
    detail: str = ""


def verify(backend: Backend, cases: Iterable[Case]) -> list[Result]:
    """Run the cases on the backend, in order."""
    return [run_case(backend, case) for case in cases]


def run_case(backend: Backend, case: Case) -> Result:
    """Run one case and compare everything that it wrote, and everything that it must not have written."""
    kernel = kernel_named(case.kernel)

    def result(outcome: str, detail: str = "") -> Result:
        return Result(backend.name, case.kernel, case.name, outcome, detail)

    if not backend.supports(kernel):
        return result("NOT SUPPORTED", "the backend lacks this kernel")
    inputs, scalars, expected = _expected(case)
    poisoned = {arg.name for arg in kernel.args if arg.role == "out"}
    given = {name: guarded(array, name in poisoned) for name, array in inputs.items()}
    try:
        found = backend.run(kernel, given, scalars)
    except UnsupportedError as error:
        return result("NOT SUPPORTED", str(error))
    except KernelError as error:
        return result("FAIL", f"refused: {error}")
    except GpuUnavailable:
        raise  # no verdict on the kernel
    except Exception as error:  # a mutated or broken kernel may raise anything; the table must go on
        return result("FAIL", f"raised {type(error).__name__}: {error}")
    problem = _difference(kernel, case, inputs, given, expected, found)
    return result("FAIL", problem) if problem else result("OK")


@cache
def _expected(case: Case) -> tuple[Arrays, dict[str, Any], Arrays]:
    """Inputs with outputs made, scalars, and what the oracle writes; kept, because several backends are compared."""
    kernel = kernel_named(case.kernel)
    arrays, scalars = case.make()
    call = bind(kernel, arrays, scalars)
    inputs = {name: array for name, array in call.arrays.items() if array is not None}
    outs = {arg.name for arg in kernel.args if arg.role == "out"}
    # Another poison than the backend's: what neither of them writes will differ.
    copies = {name: np.full_like(array, 55) if name in outs else array.copy() for name, array in inputs.items()}
    absent = {arg.name: None for arg in kernel.args if arg.name not in copies}
    with np.errstate(all="ignore"):
        status = ORACLES[kernel.name](SimpleNamespace(**copies, **absent, **call.scalars))
    assert status == case.status, f"{case.kernel}/{case.name}: the oracle says {status!r}, the case {case.status!r}"
    scalars = call.scalars | {axis: size for axis, size in call.axes.items() if axis in scalars}
    return inputs, scalars, copies


def _difference(kernel: KernelDef, case: Case, inputs: Arrays, given: Arrays, expected: Arrays, found: Arrays) -> str:
    status = Status(int(found["status"][0]))
    if status != case.status:
        return f"status is {status!r}, expected {case.status!r}"
    for name, array in given.items():
        if band_broken(array):
            return f"{name}: written outside the array"
    for arg in kernel.args:
        if arg.role == "in" and arg.name in given and not _same(given[arg.name], inputs[arg.name]):
            return f"{arg.name}: an input was changed"
    if case.judge:
        return case.judge(inputs, expected, found)
    for arg in kernel.args:
        if arg.role in ("out", "inout") and arg.name in inputs:
            problem = compare(kernel, arg.name, found[arg.name], expected[arg.name])
            if problem:
                return problem
    return ""


def compare(kernel: KernelDef, name: str, found: NDArray[Any], expected: NDArray[Any]) -> str:
    """What differs in one array that the kernel wrote, in words; nothing when it is right."""
    if found.shape != expected.shape:
        return f"{name}: shape {found.shape}, expected {expected.shape}"
    if not kernel.decision and name in TOLERANCES:
        absolute, relative = TOLERANCES[name]
        x, y = found.astype(np.float64), expected.astype(np.float64)
        with np.errstate(all="ignore"):
            wrong = ~((np.abs(x - y) <= absolute + relative * np.abs(y)) | (x == y) | (np.isnan(x) & np.isnan(y)))
    else:
        wrong = ~_equal(found, expected)
    if not wrong.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"{name}{list(at)} is {found[at]}, expected {expected[at]} ({int(wrong.sum())} of {wrong.size} differ)"


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return bool(_equal(a, b).all())


def _equal(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Bit for bit, so that -0 is not +0; fp32 NaN are alike, because their payload is the machine's."""
    if a.dtype.kind != "f":
        return np.asarray(a == b)
    bits = {2: np.uint16, 4: np.uint32}[a.dtype.itemsize]
    same = np.ascontiguousarray(a).view(bits) == np.ascontiguousarray(b).view(bits)
    return same | (np.isnan(a) & np.isnan(b)) if a.dtype == np.float32 else np.asarray(same)


def table(results: Iterable[Result]) -> str:
    """One line per kernel with counts, one line per case that is not OK, and a last line with the total."""
    results = list(results)
    lines = []
    for kernel in dict.fromkeys(result.kernel for result in results):
        own = [result for result in results if result.kernel == kernel]
        counts = {outcome: sum(r.outcome == outcome for r in own) for outcome in ("OK", "FAIL", "NOT SUPPORTED")}
        shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        lines.append(f"{own[0].backend}  {kernel:<30} {shown}")
        lines += [f"    {r.case}: {r.outcome}: {r.detail}" for r in own if r.outcome != "OK"]
    passed = sum(result.outcome == "OK" for result in results)
    return "\n".join([*lines, f"{passed} of {len(results)} cases OK"])
