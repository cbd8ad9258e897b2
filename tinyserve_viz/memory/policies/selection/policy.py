"""What a selection policy is: which number ranks a sequence's blocks, how many are kept, and which ones always.

A policy is parameters and, where it ranks by order, a function of integers; the ranking itself is done by the kernel
`cache_selection` on every backend. What steers is a box score, a block's attention mass from the kernel `block_mass`,
or an integer made here; an attention output steers nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

RANKINGS = ("box", "mass", "window", "order")
BUDGETS = ("paper", "seed", "seed-published")


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a ranking by order may look at: `seqs` int32 [k] attend in `layer` over `num_blocks` int32 [k] blocks each,
    at context lengths `context` int32 [k]; wanted are numbers [k][num_heads][width]."""

    seqs: I32
    context: I32
    num_blocks: I32
    layer: int
    num_heads: int
    width: int
    seed: int


@dataclass(frozen=True, slots=True)
class SelectionPolicy:
    """One policy.

    Attributes:
        ranks_by: `box` the box score, `mass` the query's own attention mass, `window` that of the queries before it,
            `order` what `order` returns: whole numbers below 2^24 as float32, the largest kept first.
        budget: `paper` a share of the blocks or a fixed number, `seed` by priority, `seed-published` all or the first
            half.
        sinks, recent: first and last blocks always kept, inside the budget, unless the user says otherwise.
        reduction: one number of a KV head's query heads, unless the user says otherwise.
        can_keep: whether first and last blocks may be kept at all.
        warning: what a user must know who runs it.
    """

    name: str
    summary: str
    source: str
    ranks_by: str
    budget: str = "paper"
    sinks: int = 0
    recent: int = 0
    reduction: str = "max"
    order: Callable[[Asked], F32] | None = None
    can_keep: bool = True
    warning: str | None = None
