"""`block_bookkeeping`: single entries of tables and counters that the host decided, in one launch a batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Status, ceil_div

# Number of an array in an edit. `cached` is one byte an entry and can only be set.
EDITED = ("block_table", "history", "ref", "gen", "level", "freq", "hits", "lookups", "cached")
SET, ADD = 0, 1


def reference(*, edits: NDArray[np.int64], **arrays: NDArray[np.generic]) -> Status:
    """Set or add to entries: an edit is (2 · array + operation, flat index, value).

    Additions commute, so an entry may be added to more than once; one that is set is named once in the batch (else it
    is open which value stays). An unknown array, an index outside it and an addition to `cached` are skipped (RANGE).
    """
    which, index, value = edits.T
    array, operation = which >> 1, which & 1
    known = (which >= 0) & (array < len(EDITED)) & ~((array == len(EDITED) - 1) & (operation == ADD))
    done = np.zeros(len(edits), np.bool_)
    for number, name in enumerate(EDITED):
        flat = arrays[name].reshape(-1)
        fits = known & (array == number) & (index >= 0) & (index < len(flat))
        sets, adds = fits & (operation == SET), fits & (operation == ADD)
        flat[index[sets]] = value[sets].astype(flat.dtype)
        if adds.any():
            np.add.at(flat, index[adds], value[adds].astype(flat.dtype))
        done |= fits
    return Status.OK if done.all() else Status.RANGE


KERNEL = KernelDef(
    name="block_bookkeeping",
    summary="Set or add to single entries of the block tables and of the blocks' counters.",
    source="ours: prefix hits, evictions and copy-on-write are decided on the host; the tables live with the kernels",
    reference=reference,
    args=(
        Arg("edits", "int64", ("num_edits", "3"), doc="(2 · array + operation (0 set, 1 add), flat index, value)"),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), "inout"),
        Arg("history", "int32", ("num_seqs", "max_blocks_per_seq"), "inout", "accesses per logical block"),
        Arg("ref", "int32", ("num_blocks",), "inout"),
        Arg("gen", "int32", ("num_blocks",), "inout", "times allocated"),
        Arg("level", "int32", ("num_blocks",), "inout", "protection level, 0 to 4"),
        Arg("freq", "int32", ("num_blocks",), "inout", "accesses in this window"),
        Arg("hits", "int32", ("num_blocks",), "inout", "prefix hits in the window"),
        Arg("lookups", "int32", ("num_blocks",), "inout", "prefix lookups in the window"),
        Arg("cached", "uint8", ("num_blocks",), "inout", "1: free but still in the prefix index"),
    ),
    scalars=(),
    launch=Launch(
        layout="one thread per edit; integer atomics where it adds",
        grid=lambda a: (max(1, ceil_div(a["num_edits"], 256)), 1, 1),
        threads=256,
    ),
)
