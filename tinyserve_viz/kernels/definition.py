"""What a kernel is: arguments with named axes, scalars, launch and status bits, and the C parameter list they imply.

One `KernelDef` describes a kernel to every backend. The C order is fixed: pointers in the order of `args`, then every
axis as `int64_t` in order of first appearance, then the scalars, then `int* status`. Index arithmetic is 64-bit
everywhere, so that a pool or a context may pass 2**31 elements; the ids stored in tables stay int32.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Axes = Mapping[str, int]
Role = Literal["in", "out", "inout", "scratch"]

C_TYPES = {
    "float16": "half",
    "float32": "float",
    "int64": "int64_t",
    "int32": "int",
    "int8": "int8_t",
    "uint8": "uint8_t",
}


class Status(enum.IntFlag):
    """Bits that a kernel ORs into its status word; it never traps. Each kernel's docstring says what it then skips."""

    OK = 0
    UNMAPPED = 1  # a table entry that is needed is -1, or names a block that nobody holds
    RANGE = 2  # an id, a length or a count lies outside its array
    SHARED_WRITE = 4  # a write into a block with more than one reference
    DOUBLE_FREE = 8  # a reference is given back that was not held
    ALREADY_MAPPED = 16  # the table entry to be filled holds a block
    OOM = 32  # fewer free blocks than requests
    CONFLICT = 64  # operations of one batch contradict each other or the state
    NOT_A_NUMBER = 128  # a NaN came in where a decision is taken; the kernel says what it was taken for


@dataclass(frozen=True, slots=True)
class Arg:
    """An array argument. An axis is a name, or a literal such as "2"; `optional` ones may be absent (a null pointer).

    Roles: `in` is only read, `out` is written in full, `inout` is changed in place and untouched elsewhere, `scratch`
    is workspace of the CUDA forms, zero before the first call; its words that must be zero are left zero. The reference
    ignores it.
    """

    name: str
    dtype: str
    axes: tuple[str, ...]
    role: Role = "in"
    doc: str = ""
    optional: bool = False

    def __post_init__(self) -> None:
        assert self.dtype in C_TYPES, f"{self.name}: no C type for {self.dtype}"

    def c_parameter(self) -> str:
        """`const half* query` for an input, without `const` for what the kernel writes."""
        return f"{'const ' if self.role == 'in' else ''}{C_TYPES[self.dtype]}* {self.name}"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A parameter passed by value; `default` None means that the caller must give it."""

    name: str
    dtype: Literal["int64", "int32", "float32"]
    doc: str = ""
    default: int | float | None = None
    choices: tuple[str, ...] = ()  # names of the values 0, 1, …, for scalars that choose a form

    def c_parameter(self) -> str:
        """`float scale`."""
        return f"{C_TYPES[self.dtype]} {self.name}"


@dataclass(frozen=True, slots=True)
class Stage:
    """A launch around the kernel's own, of `name`_`suffix` in the same file with the same parameters.

    The end of a launch is the only barrier over a whole grid: what must be finished everywhere first is a stage.
    `when` tells from the axes, from has_NAME of each argument and from the device, `num_sms` multiprocessors whose
    thread blocks may have `most_shared` bytes of shared memory, whether a call needs it; `grid` knows axes and device.
    """

    suffix: str
    grid: Callable[[Axes], tuple[int, int, int]]
    threads: int
    when: Callable[[Mapping[str, Any]], bool] = field(default=lambda _facts: True)
    shared_bytes: Callable[[Axes], int] = field(default=lambda _axes: 0)


@dataclass(frozen=True, slots=True)
class Launch:
    """CUDA launch shape as functions of the axes; `layout` says in words what one thread block does.

    `before` and `after` are launches around it; `when` tells, like a stage's, whether the call needs the launch of the
    kernel's own name, or a stage does it all; `scratch_axes` gives the sizes that only scratch arrays have. With
    `overlap` a call's launches may start before the one before them has ended: each waits by itself (`follow_launch`).
    With `early` its first does too, whatever was launched before the call.
    """

    layout: str
    grid: Callable[[Axes], tuple[int, int, int]]
    threads: int
    shared_bytes: Callable[[Axes], int] = field(default=lambda _axes: 0)
    before: tuple[Stage, ...] = ()
    after: tuple[Stage, ...] = ()
    when: Callable[[Mapping[str, Any]], bool] = field(default=lambda _facts: True)
    scratch_axes: Callable[[Axes], Mapping[str, int]] = field(default=lambda _axes: {})
    overlap: bool = False
    early: bool = False


@dataclass(frozen=True, slots=True)
class Requirement:
    """A relation between axes and scalars that a call must keep, with the words for the one who broke it."""

    text: str
    holds: Callable[[Axes, Mapping[str, Any]], bool]


@dataclass(frozen=True, slots=True, eq=False)
class KernelDef:
    """One kernel. `decision` kernels steer the replay: their outputs are equal bit for bit on every backend.

    `reference` takes every argument and scalar by name (None for an absent one, no scratch), writes `out` and `inout`
    arrays in place as the CUDA kernel does, and returns the status word.
    """

    name: str
    summary: str
    source: str
    args: tuple[Arg, ...]
    scalars: tuple[Scalar, ...]
    launch: Launch
    reference: Callable[..., Status]
    decision: bool = True
    requires: tuple[Requirement, ...] = ()

    def arg(self, name: str) -> Arg:
        """The array argument of that name."""
        return next(arg for arg in self.args if arg.name == name)

    @property
    def axes(self) -> tuple[str, ...]:
        """Named axes in order of first appearance; an axis that only absent arguments name has size 0."""
        seen = {axis: None for arg in self.args for axis in arg.axes if not axis.isdigit()}
        return tuple(seen)

    def c_parameters(self) -> list[str]:
        """The exact C parameter list: pointers, axes, scalars, status."""
        return [
            *(arg.c_parameter() for arg in self.args),
            *(f"int64_t {axis}" for axis in self.axes),
            *(scalar.c_parameter() for scalar in self.scalars),
            "int* status",
        ]


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer not below the quotient; both are non-negative, and a zero denominator counts as one."""
    return -(-numerator // max(1, denominator))
