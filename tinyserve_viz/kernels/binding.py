"""Bind a call's arrays and scalars to a definition: the one place where a call is checked, for every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels.definition import Arg, KernelDef, Scalar

_LIMITS = {"int32": (-(1 << 31), (1 << 31) - 1), "int64": (-(1 << 63), (1 << 63) - 1)}


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A checked call: every argument has an array or None, every axis a size, every scalar a value."""

    kernel: KernelDef
    axes: dict[str, int]
    arrays: dict[str, NDArray[Any] | None]
    scalars: dict[str, Any]

    def outputs(self) -> dict[str, NDArray[Any]]:
        """The arrays that the kernel writes, scratch excepted."""
        written = (arg.name for arg in self.kernel.args if arg.role in ("out", "inout"))
        return {name: array for name in written if (array := self.arrays[name]) is not None}


def bind(kernel: KernelDef, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> Call:
    """Check a call and make the outputs it leaves out; `scalars` may name axes that only outputs have (`max_selected`).

    Raises:
        KernelError: an argument is missing, unknown, of another dtype, not contiguous, or its shape contradicts the
            others; a scalar is missing or out of range; a requirement of the definition does not hold.
    """
    axes, values = _given(kernel, arrays, scalars)
    bound: dict[str, NDArray[Any] | None] = {}
    for arg in kernel.args:
        array = arrays.get(arg.name)
        bound[arg.name] = None if array is None else _checked(kernel, arg, array, axes)
    for arg in kernel.args:
        if bound[arg.name] is None and not arg.optional:
            bound[arg.name] = _made(kernel, arg, axes)
    final = _finished(kernel, axes, values, {name for name, array in bound.items() if array is not None})
    return Call(kernel, axes, bound, final)


def bind_shapes(
    kernel: KernelDef, arrays: Mapping[str, tuple[tuple[int, ...], str]], scalars: Mapping[str, Any]
) -> tuple[dict[str, int], dict[str, Any]]:
    """As `bind` where only shape and dtype of each array are here: (axes, scalars). Outputs may be left out.

    Raises:
        KernelError: as `bind`.
    """
    axes, values = _given(kernel, arrays, scalars)
    for arg in kernel.args:
        if arg.name in arrays:
            shape, dtype = arrays[arg.name]
            where = f"{kernel.name}: {arg.name}"
            if dtype != arg.dtype:
                raise KernelError(f"{where} is {dtype}, expected {arg.dtype}")
            _fit(where, arg, shape, axes)
        elif not arg.optional and arg.role != "out":
            raise KernelError(f"{kernel.name}: {arg.name} is missing, expected {arg.dtype} [{']['.join(arg.axes)}]")
    present = {arg.name for arg in kernel.args if arg.name in arrays or arg.role == "out"}
    return axes, _finished(kernel, axes, values, present)


def _given(
    kernel: KernelDef, arrays: Mapping[str, Any], scalars: Mapping[str, Any]
) -> tuple[dict[str, int], dict[str, Any]]:
    """Axes that stand among the scalars, and the other scalars."""
    axes: dict[str, int] = {}
    values = dict(scalars)
    for axis in kernel.axes:
        if axis in values:
            axes[axis] = _whole(kernel, axis, values.pop(axis), 0, 1 << 62)
    known = {arg.name for arg in kernel.args}
    if unknown := [name for name in arrays if name not in known] + [
        name for name in values if name not in {scalar.name for scalar in kernel.scalars}
    ]:
        names = ", ".join([*(arg.name for arg in kernel.args), *(scalar.name for scalar in kernel.scalars)])
        raise KernelError(f"{kernel.name} has no argument {unknown[0]!r}; it has {names}")
    return axes, values


def _finished(kernel: KernelDef, axes: dict[str, int], values: Mapping[str, Any], present: set[str]) -> dict[str, Any]:
    """Every scalar's value, once every axis has a size and the requirements hold."""
    for axis in kernel.axes:
        axes.setdefault(axis, 0)
    final = {scalar.name: _scalar(kernel, scalar, values.get(scalar.name)) for scalar in kernel.scalars}
    facts = final | {f"has_{arg.name}": arg.name in present for arg in kernel.args}
    for requirement in kernel.requires:
        if not requirement.holds(axes, facts):
            sizes = ", ".join(f"{axis}={axes[axis]}" for axis in kernel.axes if axis in requirement.text)
            raise KernelError(f"{kernel.name}: {requirement.text}{f' ({sizes})' if sizes else ''}")
    return final


def _checked(kernel: KernelDef, arg: Arg, given: Any, axes: dict[str, int]) -> NDArray[Any]:
    where = f"{kernel.name}: {arg.name}"
    if not isinstance(given, np.ndarray):
        raise KernelError(f"{where} is a {type(given).__name__}, expected a NumPy array of {arg.dtype}")
    array: NDArray[Any] = given.view(np.uint8) if given.dtype == np.bool_ and arg.dtype == "uint8" else given
    if array.dtype != arg.dtype:
        raise KernelError(f"{where} is {array.dtype}, expected {arg.dtype}")
    if not array.flags.c_contiguous:
        raise KernelError(f"{where} is not contiguous; pass np.ascontiguousarray(…)")
    if arg.role in ("out", "inout") and not array.flags.writeable:
        raise KernelError(f"{where} is written by the kernel, but the array is read-only")
    _fit(where, arg, array.shape, axes)
    return array


def _fit(where: str, arg: Arg, shape: tuple[int, ...], axes: dict[str, int]) -> None:
    """The array's sizes become those of its axes, where they have none yet."""
    if len(shape) != len(arg.axes):
        raise KernelError(f"{where} has {len(shape)} axes, expected [{']['.join(arg.axes)}]")
    for axis, size in zip(arg.axes, shape, strict=True):
        expected = int(axis) if axis.isdigit() else axes.setdefault(axis, size)
        if size != expected:
            name = f"{axis}={size}" if not axis.isdigit() else f"{size} in the place of {axis}"
            before = f", earlier arguments have {axis}={expected}" if not axis.isdigit() else ""
            raise KernelError(f"{where} has {name}{before}")


def _made(kernel: KernelDef, arg: Arg, axes: dict[str, int]) -> NDArray[Any]:
    if arg.role != "out":
        raise KernelError(f"{kernel.name}: {arg.name} is missing, expected {arg.dtype} [{']['.join(arg.axes)}]")
    if unknown := [axis for axis in arg.axes if not axis.isdigit() and axis not in axes]:
        raise KernelError(f"{kernel.name}: give {arg.name}, or {unknown[0]}=… so that it can be made")
    return np.empty([int(axis) if axis.isdigit() else axes[axis] for axis in arg.axes], arg.dtype)


def _scalar(kernel: KernelDef, scalar: Scalar, value: Any) -> Any:
    if value is None:
        if scalar.default is None:
            raise KernelError(f"{kernel.name}: {scalar.name} is missing ({scalar.doc})")
        value = scalar.default
    if isinstance(value, str) and scalar.choices:
        if value not in scalar.choices:
            raise KernelError(f"{kernel.name}: unknown {scalar.name} {value!r}; known: {', '.join(scalar.choices)}")
        value = scalar.choices.index(value)
    if scalar.dtype == "float32":
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.floating, np.integer)):
            raise KernelError(f"{kernel.name}: {scalar.name} is {value!r}, expected a number")
        return np.float32(value)
    low, high = (0, len(scalar.choices) - 1) if scalar.choices else _LIMITS[scalar.dtype]
    return _whole(kernel, scalar.name, value, low, high)


def _whole(kernel: KernelDef, name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise KernelError(f"{kernel.name}: {name} is {value!r}, expected a whole number from {low} to {high}")
    return int(value)
