"""Why a policy decided as it did, in words, from an event and the state before it: levels, regions, choices."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.quality import near_chance, requests_by_region
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.state import CacheState

MAX_LEVEL = 4


def level_reason(event: ev.LevelsAdapted, state: CacheState, place: int) -> str:
    """Why the block at `place` of the event rose, fell or was cleared: `block 12 level 1 → 2: 3 of 20 lookups hit …`.

    Thresholds are named where the event has them.
    """
    block, decision = int(event.blocks[place]), int(event.decisions[place])
    hits, lookups, freq = (int(values[block]) for values in (state.window_hits, state.window_lookups, state.freq))
    before, after = int(state.level[block]), int(event.levels[place])
    change = f"block {block} level {before} → {after}" if after != before else f"block {block} stays at level {after}"
    if not decision:
        return f"{change}: nobody holds it and it is not cached"
    asked = f"{hits:,} of {lookups:,} lookups hit" if lookups else "nobody looked it up"
    if not event.hit_threshold_permille:
        return f"{change}: {asked}, {freq:,} accesses"
    theta, phi = event.hit_threshold_permille, event.frequency_threshold
    if decision > 0:
        return f"{change}: {asked} (under {theta / 10:g} %) and {freq:,} accesses (over {phi})"
    return f"{change}: {asked} (over {1.5 * theta / 10:g} %) and {freq:,} accesses (under {phi / 2:g})"


def first_reasons(event: ev.LevelsAdapted, state: CacheState) -> list[str]:
    """The reason of the first block that rose and of the first that fell."""
    found = []
    for direction in (1, -1):
        places = np.flatnonzero(event.decisions == direction)
        if len(places):
            found.append(level_reason(event, state, int(places[0])))
    return found


def what_a_choice_was_worth(event: ev.BlocksSelected) -> str:
    """Mass kept, the oracle's choice found, and when that is hardly more than a draw by lot; "" if not watched."""
    parts = []
    if len(event.retained):
        mean, worst = float(event.retained.mean()), float(event.retained.min())
        parts.append(f"attention mass kept {mean:.2f} on average, {worst:.2f} at worst")
    if len(event.recalls):
        recall, chance = float(event.recalls.mean()), float(event.chances.mean())
        oracle = float(event.oracle_retained.mean())
        near = ": near chance" if near_chance(recall, chance) else ""
        parts.append(
            f"the oracle keeps {oracle:.2f} and {100 * recall:.0f} % of its blocks were chosen, "
            f"a draw by lot finds {100 * chance:.0f} %{near}"
        )
    broken = int((event.slack_least < 0).sum())
    if broken:
        parts.append(f"BOX BOUND BROKEN {broken} times")
    return "; ".join(parts)


def newest_half_lost(event: ev.BlocksSelected) -> int:
    """Sequences from which `seed-published` took everything after the middle."""
    return int((event.priorities == 0).sum()) if event.policy == "seed-published" else 0


def what_the_regions_did(event: ev.BlocksPlaced) -> str:
    """Who got which region, what was lost and what was spared, e.g. `2 hot requests in the hot region, …`."""
    hot_hits, hot_misses, kept_out, intruded = requests_by_region(event).tolist()
    evicted = int(((event.reasons == 1) | (event.reasons == 3)).sum())
    told = (
        (hot_hits, "hot in the hot region"),
        (hot_misses, "hot but outside, the region was used up"),
        (kept_out, "cold kept out"),
        (intruded, "cold came in, nothing else was left"),
        (evicted, "took the place of cached ones"),
        (event.spared_by_region, "older ones spared by their region"),
        (event.spared_by_level, "older ones spared by their level"),
    )
    return ", ".join(f"{number:,} {words}" for number, words in told if number)
