from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyserve_viz.kernels import KERNELS
from tinyserve_viz.kernels.backend import Backend, UnsupportedError, kernel_named
from tinyserve_viz.kernels.cases import CASES
from tinyserve_viz.kernels.conformance import Case, run_case, table
from tinyserve_viz.kernels.definition import KernelDef, Status
from tinyserve_viz.kernels.guard import band_broken, guarded, region
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.kernels.oracles import ORACLES

BACKENDS: tuple[Backend, ...] = (NumpyBackend(),)
ONE_COPY = next(case for case in CASES if (case.kernel, case.name) == ("fused_block_copy", "one_block"))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kernel}-{case.name}")
def test_every_backend_gives_what_the_oracle_gives(backend: Backend, case: Case) -> None:
    result = run_case(backend, case)
    assert result.outcome == "OK", result.detail


def test_every_kernel_has_an_oracle_and_cases_that_say_why_they_exist() -> None:
    names = [kernel.name for kernel in KERNELS]
    assert list(ORACLES) == names
    assert {case.kernel for case in CASES} == set(names)
    assert all(case.why and case.name for case in CASES)
    assert len({(case.kernel, case.name) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_the_cases_of_a_kernel_use_every_choice_of_its_scalars_and_give_every_optional_array(kernel: KernelDef) -> None:
    calls = [case.make() for case in CASES if case.kernel == kernel.name]
    given = {name for arrays, _ in calls for name in arrays}
    assert {arg.name for arg in kernel.args if arg.optional and arg.role != "scratch"} <= given
    for scalar in kernel.scalars:
        used = {scalars.get(scalar.name, scalar.default) for _, scalars in calls}
        used |= {scalar.choices.index(value) for value in used if value in scalar.choices}
        assert set(range(len(scalar.choices))) <= used


class Broken:
    """The NumPy backend with a fault in what it does to the arrays."""

    name = "broken"

    def __init__(self, fault: Any) -> None:
        self.fault = fault

    def supports(self, kernel: KernelDef) -> bool:
        return True

    def run(self, kernel: KernelDef, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> dict[str, Any]:
        found = NumpyBackend().run(kernel, arrays, scalars)
        self.fault(arrays, found)
        return found


def _spill(arrays: Any, _found: Any) -> None:
    buffer, start = region(arrays["key_cache"])
    buffer[start + arrays["key_cache"].nbytes] = 0


def _change_input(arrays: Any, _found: Any) -> None:
    arrays["ops"][0, 2] = 3


def _claim_success(_arrays: Any, found: Any) -> None:
    found["status"][:] = int(Status.CONFLICT)


def _forget_one(arrays: Any, _found: Any) -> None:
    arrays["value_cache"][0, 1, 15, 1, 63] += 1


def _refuse(_arrays: Any, _found: Any) -> None:
    raise UnsupportedError("no blocks of this size")


def _crash(_arrays: Any, _found: Any) -> None:
    raise ZeroDivisionError("oops")


@pytest.mark.parametrize(
    ("fault", "outcome", "words"),
    [
        (_spill, "FAIL", "key_cache: written outside"),
        (_change_input, "FAIL", "ops: an input was changed"),
        (_claim_success, "FAIL", "status is"),
        (_forget_one, "FAIL", "value_cache[0, 1, 15, 1, 63]"),
        (_refuse, "NOT SUPPORTED", "no blocks of this size"),
        (_crash, "FAIL", "raised ZeroDivisionError"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_faulty_backend_is_reported_in_words(fault: Any, outcome: str, words: str) -> None:
    result = run_case(Broken(fault), ONE_COPY)
    assert (result.outcome, words in result.detail) == (outcome, True), result.detail


def test_an_output_that_is_left_unwritten_fails_even_where_its_memory_was_zero() -> None:
    class Idle(NumpyBackend):
        def run(self, kernel: KernelDef, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> dict[str, Any]:
            return {**arrays, "status": np.zeros(1, np.int32)}

    for case in CASES:
        outs = [arg for arg in kernel_named(case.kernel).args if arg.role == "out"]
        inputs, _ = case.make()
        if case.status == Status.OK and outs and all(size for array in inputs.values() for size in array.shape):
            assert run_case(Idle(), case).outcome == "FAIL", f"{case.kernel}/{case.name}"


def test_guard_bands_lie_on_both_sides_and_show_single_bytes() -> None:
    view = guarded(np.arange(6, dtype=np.int32).reshape(2, 3))
    assert view.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not band_broken(view)
    buffer, start = region(view)
    buffer[start - 1] = 0
    assert band_broken(view)
    assert np.isnan(guarded(np.zeros(3, np.float16), poison=True)).all()
    assert guarded(np.zeros(3, np.int32), poison=True).tolist() == [0x7F7F7F7F] * 3


def test_the_table_counts_outcomes_and_names_what_is_not_ok() -> None:
    class Lacking(NumpyBackend):
        def supports(self, kernel: KernelDef) -> bool:
            return kernel.name != "block_fork"

    fork = next(case for case in CASES if case.kernel == "block_fork")
    wrong = replace(ONE_COPY, judge=lambda *_: "not what was asked")
    text = table([run_case(Lacking(), case) for case in (fork, wrong, ONE_COPY)])
    assert text.splitlines() == [
        "numpy  block_fork                     1 NOT SUPPORTED",
        "    one: NOT SUPPORTED: the backend lacks this kernel",
        "numpy  fused_block_copy               1 OK, 1 FAIL",
        "    one_block: FAIL: not what was asked",
        "1 of 3 cases OK",
    ]


def test_the_folders_of_defs_cases_and_oracles_name_only_known_modules() -> None:
    package = Path(__file__).parents[2] / "tinyserve_viz" / "kernels"
    families = {"attention", "decisions", "memory", "upkeep"}
    assert {path.stem for path in (package / "oracles").glob("[a-z]*.py")} == families
    assert {path.stem for path in (package / "cases").glob("[a-z]*.py")} == families | {"batch"}
