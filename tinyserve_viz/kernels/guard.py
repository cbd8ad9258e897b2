"""Arrays between guard bands: a kernel that writes past an end is seen, on the host and on a device alike.

A guarded array is a view into a longer buffer of bytes. A device backend that is being verified copies the whole buffer
(`region`) to the device and back and passes the address inside it, so that the device's writes meet the same bands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BAND = 512  # bytes on either side; a multiple of every alignment that a kernel asks for
_BAND_BYTE = 0xA5
POISON_BYTE = 0x7F


def guarded(array: NDArray[Any], poison: bool = False) -> NDArray[Any]:
    """A copy of `array` between bands; with `poison`, NaN or bytes of 0x7f in its place."""
    buffer = np.full(array.nbytes + 2 * BAND, _BAND_BYTE, np.uint8)
    view = buffer[BAND : BAND + array.nbytes].view(array.dtype).reshape(array.shape)
    if not poison:
        view[...] = array
    elif array.dtype.kind == "f":
        view[...] = np.nan
    else:
        view.view(np.uint8)[...] = POISON_BYTE
    return view


def region(view: NDArray[Any]) -> tuple[NDArray[np.uint8], int]:
    """The whole buffer around a guarded array and the byte at which the array starts."""
    buffer = view
    while isinstance(buffer.base, np.ndarray):
        buffer = buffer.base
    return buffer, view.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]


def band_broken(view: NDArray[Any]) -> bool:
    """Whether anything was written before or behind the array."""
    buffer, start = region(view)
    outside = np.r_[buffer[:start], buffer[start + view.nbytes :]]
    return bool((outside != _BAND_BYTE).any())
