"""When a replay compacts its pool: trigger and cool-down on a state, and the plan that the kernel makes as an event.

Without kernels (`--kernels none`) the allocator's state is compacted alone: ids change, tables, references and the
prefix index follow, and there is no K/V to move. Nothing is ever selected then, so accesses and levels are 0 and only
sharing makes a block heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core import events as ev
from tinyserve_viz.core.compaction import VERDICTS, CompactionRule
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.kernels.backend import Backend, kernel_named
from tinyserve_viz.kernels.defs.intelligent_memory_compaction import METRICS

KERNEL = "intelligent_memory_compaction"


def due(state: CacheState, rule: CompactionRule) -> bool:
    """Whether a plan is made in this step: the trigger is passed and the last plan is `cooldown` steps ago."""
    if rule.cools_down(state.step, state.compacted_at):
        return False
    if state.num_blocks * 1000 <= rule.trigger * state.num_used:  # no id is that high; `num_used` counts ref > 0
        return False
    used = state.ref > 0
    live = int(np.count_nonzero(used))
    return live > 0 and (len(used) - int(used[::-1].argmax())) * 1000 > rule.trigger * live


def scalars(rule: CompactionRule) -> dict[str, int]:
    """The rule as the kernel takes it."""
    return {
        "threshold_permille": rule.threshold,
        "weight_uses": rule.weight_uses,
        "weight_level": rule.weight_level,
        "weight_shared": rule.weight_shared,
        "trigger_permille": rule.trigger,
        "min_moves": rule.min_moves,
        "min_gain": rule.min_gain,
        "payback_permille": rule.payback,
    }


def decided(outputs: Mapping[str, NDArray[Any]]) -> ev.CompactionPlanned:
    """What the kernel answered, as the event."""
    found = dict(zip(METRICS, outputs["metrics"].tolist(), strict=True))
    moves = outputs["moves"][: int(outputs["num_moves"][0])]
    return ev.CompactionPlanned(
        verdict=VERDICTS[found["verdict"]],
        src=np.ascontiguousarray(moves[:, 0]),
        dst=np.ascontiguousarray(moves[:, 1]),
        live=found["live"],
        movable=found["movable"],
        pinned=found["pinned"],
        planned=found["planned"],
        top_before=found["max_live_before"],
        top_after=found["max_live_after"],
        frag_permille_before=found["frag_permille_before"],
        frag_permille_after=found["frag_permille_after"],
    )


def plan_on_state(state: CacheState, rule: CompactionRule, backend: Backend) -> ev.CompactionPlanned | None:
    """The plan for a replay without kernels, None when none is due."""
    if not due(state, rule):
        return None
    cached = ((state.ref == 0) & (state.hash >= 0)).astype(np.uint8)
    arrays = {"ref": state.ref, "cached": cached, "uses": state.freq, "level": state.level}
    return decided(backend.run(kernel_named(KERNEL), arrays, {"max_moves": state.num_blocks, **scalars(rule)}))
