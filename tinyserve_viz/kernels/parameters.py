"""Policy parameters: configuration name, default, range, unit and source of each number that steers.

Ratios, thresholds, weights and decays are integers per mille, so that a decision does not depend on how a machine
rounds. A definition takes its scalars' defaults from here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyserve_viz.core.compaction import CompactionRule
from tinyserve_viz.core.errors import ConfigError

_COMPACTION = CompactionRule()  # its numbers stand in core, where views that preview a compaction find them


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number that steers; `low` and `high` are both allowed."""

    name: str
    default: int
    low: int
    high: int
    unit: str
    source: str


PARAMETERS = (
    Parameter(
        "selection.ratio",
        300,
        1,
        1000,
        "per mille of the sequence's blocks",
        "TinyServe paper (arXiv 2509.12211), default 0.3",
    ),
    Parameter("selection.threshold", 500, 0, 1000, "per mille", "ours; the seed gives none"),
    Parameter("selection.weight_complexity", 400, 0, 1000, "per mille", "S:330"),
    Parameter("selection.weight_requirement", 300, 0, 1000, "per mille", "S:330"),
    Parameter("selection.weight_history", 300, 0, 1000, "per mille", "S:330"),
    Parameter("selection.sinks", 1, 0, 1 << 20, "blocks", "StreamingLLM (arXiv 2309.17453) keeps the first tokens"),
    Parameter("selection.recent", 1, 0, 1 << 20, "blocks", "Quest (arXiv 2406.10774) keeps the last page"),
    Parameter("snapkv.window", 16, 1, 1 << 10, "queries", "SnapKV (arXiv 2404.14469) votes with the last 16 to 64"),
    Parameter("requirement.high", 500, 0, 1 << 20, "per mille", "S:288"),
    Parameter("requirement.medium", 200, 0, 1 << 20, "per mille", "S:290"),
    Parameter(
        "adaptive.hit_threshold",
        600,
        1,
        1000,
        "per mille",
        "ours; under 2/3 the published shrink branch can be reached",
    ),
    Parameter("adaptive.frequency_threshold", 8, 0, 1 << 20, "accesses in the window", "ours"),
    Parameter("adaptive.decay", 500, 0, 1000, "per mille per window", "ours"),
    Parameter("adaptive.window", 64, 1, 1 << 20, "steps", "ours"),
    Parameter("hot.frequency", 5, 0, 1 << 20, "accesses", "published code, advanced_block_allocation"),
    Parameter("hot.start_divisor", 4, 1, 1 << 20, "of the pool's blocks", "the published example's quarter"),
    Parameter("hot.smallest_divisor", 16, 1, 1 << 20, "of the pool's blocks", "ours"),
    Parameter("hot.largest_divisor", 2, 1, 1 << 20, "of the pool's blocks", "ours"),
    Parameter("hot.step_divisor", 32, 1, 1 << 20, "of the pool's blocks", "ours"),
    Parameter("hot.resize_steps", 64, 1, 1 << 20, "steps", "ours"),
    Parameter("hot.grow_above", 500, 0, 1000, "per mille of hot requests that missed", "ours"),
    Parameter("hot.shrink_below", 100, 0, 1000, "per mille of hot requests that missed", "ours"),
    Parameter(
        "compaction.trigger",
        _COMPACTION.trigger,
        1000,
        1 << 30,
        "per mille, (highest live id + 1) / live",
        "vllm-gaudi's defragmenter",
    ),
    Parameter("compaction.min_moves", _COMPACTION.min_moves, 0, 1 << 20, "moves", "vllm-gaudi's defragmenter"),
    Parameter("compaction.min_gain", _COMPACTION.min_gain, 1, 1 << 30, "ids that a move must come down by", "ours"),
    Parameter(
        "compaction.payback",
        _COMPACTION.payback,
        0,
        1 << 30,
        "per mille, ids released per move",
        "ours, against death by a thousand swaps",
    ),
    Parameter(
        "compaction.cooldown", _COMPACTION.cooldown, 0, 1 << 20, "steps", "ours, against death by a thousand swaps"
    ),
    Parameter("compaction.weight_uses", _COMPACTION.weight_uses, 0, 1 << 20, "per mille per use", "ours"),
    Parameter("compaction.weight_level", _COMPACTION.weight_level, 0, 1 << 20, "per mille per level", "ours"),
    Parameter("compaction.weight_shared", _COMPACTION.weight_shared, 0, 1 << 20, "per mille if shared", "ours"),
    Parameter("compaction.threshold", _COMPACTION.threshold, 0, 1 << 40, "per mille; lighter blocks may move", "ours"),
)

_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def default(name: str) -> int:
    """The default of a parameter; an unknown name is a bug."""
    return _BY_NAME[name].default


def checked(name: str, value: int) -> int:
    """`value` if the parameter allows it.

    Raises:
        ConfigError: not a whole number in the parameter's range.
    """
    parameter = _BY_NAME[name]
    if isinstance(value, bool) or not isinstance(value, int) or not parameter.low <= value <= parameter.high:
        raise ConfigError(
            f"{name} is {value!r}, expected a whole number from {parameter.low} to {parameter.high} ({parameter.unit})"
        )
    return value
