"""The engine's rules as named options, and profiles as named sets of them: one engine, many servers to be.

`tinyserve` is the profile of docs/engine.md. `vllm` is what vLLM 0.33.0's scheduler and KV-cache manager do with one
full-attention group, first come first served (found by running its released Python on real traces).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tinyserve_viz.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EngineRules:
    """One option a rule. `RULES_IN_WORDS` says what each means.

    Raises:
        ConfigError: a value is not among those of its option.
    """

    null_block: bool = False
    cache_outputs: bool = False
    cache_at: str = "written"
    store_last_token: bool = True
    duplicate_hashes: bool = False
    free_order: str = "classes"
    free_from: str = "tail"
    running_order: str = "decode_first"
    victim: str = "latest_arrived"
    admit_after_preemption: bool = True
    admit_by: str = "sequence"
    allocate: str = "once_per_step"
    watermark: bool = True

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")


CHOICES: dict[str, tuple[str, ...]] = {
    "cache_at": ("written", "scheduled"),
    "free_order": ("classes", "queue"),
    "free_from": ("tail", "head"),
    "running_order": ("decode_first", "admission", "prefill_first"),
    "victim": ("latest_arrived", "last_running", "least_computed"),
    "admit_by": ("sequence", "chunk"),
    "allocate": ("once_per_step", "in_turn"),
}

RULES_IN_WORDS: dict[str, str] = {
    "null_block": "block 0 is a null block and never handed out",
    "cache_outputs": "full blocks that hold generated tokens enter the prefix index too",
    "cache_at": "a full block enters the index once its tokens are `written`, "
    "or when the step that will fill it is `scheduled`",
    "store_last_token": "the K/V of the last generated token is stored (o decode steps) or never computed (o - 1)",
    "duplicate_hashes": "two blocks may carry one hash, the older one is found; otherwise the second is not indexed",
    "free_order": "`classes`: never used, then freed, then cached by the eviction policy; "
    "`queue`: one queue, hashed blocks to its back, others to its front",
    "free_from": "a sequence gives its blocks up `tail` first, so that a prompt's end is lost before its beginning, "
    "or `head` first",
    "running_order": "running sequences are served decoding ones first (`decode_first`), prefilling ones first, "
    "or strictly in order of `admission`",
    "victim": "a shortage preempts the `latest_arrived` running sequence, the `last_running` one of the list, "
    "or the `least_computed` one, which loses the fewest tokens",
    "admit_after_preemption": "a step that preempted may still admit waiting sequences",
    "admit_by": "admission needs room for the whole `sequence` so far, or for the `chunk` of it that the step computes",
    "allocate": "blocks are taken `once_per_step` for all sequences, or `in_turn` for each as it is scheduled",
    "watermark": "admission keeps a share of the blocks free (watermark_permille)",
}

DEFAULT_RULES = EngineRules()

PROFILES: dict[str, EngineRules] = {
    "tinyserve": DEFAULT_RULES,
    "vllm": EngineRules(
        null_block=True,
        cache_outputs=True,
        cache_at="scheduled",
        store_last_token=False,
        duplicate_hashes=True,
        free_order="queue",
        free_from="tail",
        running_order="admission",
        victim="last_running",
        admit_after_preemption=False,
        admit_by="sequence",
        allocate="in_turn",
        watermark=False,
    ),
}


def profile(name: str, **changes: Any) -> EngineRules:
    """The rules of a profile with single options changed.

    Raises:
        ConfigError: unknown profile or option.
    """
    if name not in PROFILES:
        raise ConfigError(f"unknown profile {name!r}; known: {', '.join(sorted(PROFILES))}")
    known = {field.name for field in fields(EngineRules)}
    for change in changes:
        if change not in known:
            raise ConfigError(f"unknown rule {change!r}; known: {', '.join(sorted(known))}")
    base = PROFILES[name]
    return EngineRules(**{option: changes.get(option, getattr(base, option)) for option in sorted(known)})
