"""From a selection policy and the user's settings to one call of `cache_selection`: scores, budget, always-kept blocks.

The kernel chooses; here is only what it is given. Nothing that steers comes from an attention output: box scores and
block masses are decision kernels, orders are integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.config import OF_POLICY, EngineConfig, ModelConfig
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.core.workload import Workload
from tinyserve_viz.kernels.defs.cache_selection import paper_budget
from tinyserve_viz.kernels.parameters import default
from tinyserve_viz.memory.policies.selection import selection_named
from tinyserve_viz.memory.policies.selection.policy import Asked, SelectionPolicy

_SEED_MOST = 4  # blocks that the published priorities keep beyond the always-kept ones (S:337)


class Chooser:
    """How the blocks of this replay are chosen; parameters only.

    `num_heads` choices a sequence: one for each KV head, or one for all. `sinks` first and `recent` last blocks are
    always kept, `reduction` is how a KV head's query heads become one score.
    """

    def __init__(self, engine: EngineConfig, model: ModelConfig, seed: int) -> None:
        self._engine, self._model, self._seed = engine, model, seed
        self.policy: SelectionPolicy = selection_named(engine.selection)
        self.window = default("snapkv.window") if self.policy.ranks_by == "window" else 0
        recent = 1 + -(-self.window // engine.block_size) if self.window else self.policy.recent
        self.sinks = self.policy.sinks if engine.sinks == OF_POLICY else engine.sinks
        self.recent = recent if engine.recent == OF_POLICY else engine.recent
        self.reduction = self.policy.reduction if engine.reduction == "policy" else engine.reduction
        self.num_heads = 1 if engine.selection_heads == "shared" else model.num_kv_heads

    @property
    def ranks_by(self) -> str:
        """`box`, `mass`, `window` or `order` (memory/policies/selection/policy.py)."""
        return self.policy.ranks_by

    @property
    def box_reduction(self) -> str:
        """Reduction of the box scores, which are made for every policy."""
        return self.reduction if self.ranks_by == "box" else "max"

    @property
    def can_be_fused(self) -> bool:
        """Whether the fused attention, which scores and chooses by the paper's rule per KV head, decides the same."""
        return self.policy.name == "paper" and self._engine.selection_heads == "kv"

    def scalars(self) -> dict[str, Any]:
        """Of `cache_selection`."""
        return {"mode": self.policy.budget, **self.fused_scalars()}

    def fused_scalars(self) -> dict[str, Any]:
        """Of the fused attention, which has no mode."""
        return {
            "ratio_permille": self._engine.ratio_permille,
            "budget_blocks": self._engine.budget_blocks,
            "sinks": self.sinks,
            "recent": self.recent,
        }

    def most(self, num_blocks: int) -> int:
        """The most blocks that any choice keeps of a sequence of up to `num_blocks`."""
        if self.policy.budget == "seed":
            return min(num_blocks, self.sinks + self.recent + _SEED_MOST)
        if self.policy.budget == "seed-published":
            return num_blocks
        longest = np.array([num_blocks], dtype=np.int64)
        engine = self._engine
        return int(paper_budget(longest, engine.ratio_permille, self.sinks, self.recent, engine.budget_blocks)[0])

    def order(self, seqs: NDArray[np.int32], context: NDArray[np.int32], layer: int, width: int) -> NDArray[np.float32]:
        """The whole numbers that rank the blocks, [sequences][num_kv_heads][width], for `ranks_by` `order`."""
        assert self.policy.order is not None
        num_blocks = -(-context // self._engine.block_size)
        asked = Asked(seqs, context, num_blocks, layer, self._model.num_kv_heads, width, self._seed)
        return self.policy.order(asked)

    def voters(self, context: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Positions [k][window] of the queries that vote at context lengths [k], and how many tokens they vote about.

        SnapKV's window: the queries before the newest one, about the tokens before the window. In a context that is no
        longer than the window its queries, some of them repeatedly, vote about all of it.
        """
        first = np.maximum(context - 1 - self.window, 0)[:, None]
        positions = np.minimum(first + np.arange(self.window), np.maximum(context - 2, 0)[:, None])
        return positions.astype(np.int32), np.where(first[:, 0] > 0, first[:, 0], context).astype(np.int32)

    def beside_each_other(self, queries: NDArray[np.float16]) -> NDArray[np.float16]:
        """Queries [k · window][num_heads][head_dim] as k rows, those of one KV head side by side: to `block_mass`
        they are a group of window · (num_heads / num_kv_heads) query heads, whose masses it reduces."""
        model = self._model
        group = model.num_heads // model.num_kv_heads
        parts = queries.reshape(-1, self.window, model.num_kv_heads, group, model.head_dim)
        return np.ascontiguousarray(parts.transpose(0, 2, 1, 3, 4)).reshape(len(parts), -1, model.head_dim)

    def describe(self) -> dict[str, Any]:
        """What a summary says of the settings; `ratio` and `budget_blocks` are None where they do not count."""
        engine, paper = self._engine, self.policy.budget == "paper"
        return {
            "policy": self.policy.name,
            "ranks_by": self.ranks_by,
            "heads": engine.selection_heads,
            "reduction": self.reduction,
            "ratio": engine.ratio_permille / 1000 if paper and not engine.budget_blocks else None,
            "budget_blocks": engine.budget_blocks or None if paper else None,
            "sinks": self.sinks,
            "recent": self.recent,
            "source": self.policy.source,
            "warning": self.policy.warning,
        }


def checked_selection(engine: EngineConfig, model: ModelConfig, workload: Workload) -> Chooser:
    """The chooser of a replay that runs kernels.

    Raises:
        ConfigError: the settings contradict each other or the trace.
    """
    chooser = Chooser(engine, model, 0)
    for option, value in (("sinks", engine.sinks), ("recent", engine.recent)):
        if value > 0 and not chooser.policy.can_keep:
            raise ConfigError(f"{option} is {value}, but selection {engine.selection} keeps no block always")
    longest = -(-workload.max_tokens // engine.block_size)
    always = chooser.sinks + chooser.recent
    if engine.budget_blocks > longest:
        raise ConfigError(
            f"budget_blocks is {engine.budget_blocks:,}, but the longest sequence of the trace has {longest:,} blocks "
            f"of {engine.block_size} tokens"
        )
    if 0 < engine.budget_blocks < always and chooser.policy.budget == "paper":
        raise ConfigError(
            f"budget_blocks is {engine.budget_blocks}, but {chooser.sinks} first and {chooser.recent} last blocks are "
            "always kept, inside the budget"
        )
    if engine.sinks > longest or engine.recent > longest:
        name = "sinks" if engine.sinks > longest else "recent"
        raise ConfigError(
            f"{name} is {getattr(engine, name):,}, but the longest sequence of the trace has {longest:,} blocks "
            f"of {engine.block_size} tokens"
        )
    return chooser
