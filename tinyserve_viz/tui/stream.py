"""What the panels show of a recorded KV-event stream: what was told, occupancy, and the prefix of a block."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from tinyserve_viz.analysis.frame import ChainRow, StreamFacts
from tinyserve_viz.analysis.sentences import count, hash_name
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import View

_UNTOLD = (
    "KV-event stream: requests unknown. It names contents that enter and leave the prefix cache; who holds a block, "
    "block ids, references, hits, blocks not cached yet, frees and preemptions are not in it."
)


def told_lines(stream: StreamFacts, width: int) -> list[Text]:
    """In the place of the sequences: what the stream cannot tell, and the sums of what it told."""
    found = [
        look.line((text, look.WARN if not number else look.DIM))
        for number, text in enumerate(look.wrap(_UNTOLD, width))
    ]
    gaps = f"{count(stream.missing, 'batch')} missing in {count(stream.gaps, 'gap')}" if stream.gaps else "none"
    sequence = f"{stream.sequence:,}" if stream.sequence >= 0 else "–"
    rows = [
        ("batches", f"{stream.batches:,}, the last has sequence number {sequence}", look.PLAIN),
        ("gaps", gaps, look.BAD if stream.gaps else look.PLAIN),
        ("stored", count(stream.stored, "block"), look.PLAIN),
        ("evicted", count(stream.removed, "block"), look.PLAIN),
    ]
    if stream.cleared:
        rows.append(("cleared", f"{count(stream.cleared, 'block')} at once", look.PLAIN))
    if stream.unmatched:
        rows.append(("unmatched", f"{count(stream.unmatched, 'removal')} of what was never shown stored", look.BAD))
    if stream.unknown:
        rows.append(("not applied", f"{count(stream.unknown, 'event')} of unknown types", look.BAD))
    return [
        *found,
        *(look.line((f"{name:<12}", look.DIM), (look.clip(text, width - 12), style)) for name, text, style in rows),
    ]


def occupancy_lines(view: View, stream: StreamFacts, width: int, height: int) -> list[Text]:
    """In the place of the memory: blocks cached, by place where there are several, and over the last batches."""
    frame, history = view.frame, view.history
    cached, total = frame.memory.cached, frame.num_blocks
    room = max(4, min(30, width - 26))
    of = f"of {total:,} blocks" if stream.pool_given else f"at most {total:,} at once; pool size not told"
    found = [
        look.line(
            f"cached {cached:>7,} ", (look.bar(cached / total, room), look.GOOD), f" {100 * cached / total:>3.0f} %"
        ),
        look.line((look.clip(f"       {of}", width), look.DIM)),
        look.line(
            f"tokens {frame.memory.resident_tokens:>7,}",
            (look.clip(" in them: only full blocks are told", width - 14), look.DIM),
        ),
    ]
    if len(stream.places) > 1:
        found += [
            look.line((look.clip(f"       {place}: {number:,}", width), look.DIM)) for place, number in stream.places
        ]
    past = history.steps_before(frame.step + 1 if frame.said else 0, max(1, width - 20))
    occupancy = history.cached[past]
    if occupancy:
        found.append(
            look.line("cached  ", (look.sparkline(occupancy, total), look.GOOD), f" {count(len(occupancy), 'batch')}")
        )
        removed = history.removed[past]
        found.append(look.line("evicted ", (look.sparkline(removed), look.WARN), f" ≤ {max(removed):,} a batch"))
    return found[:height]


def chain_lines(chain: Sequence[ChainRow], width: int, height: int) -> list[Text]:
    """In the place of the block table: the prefix that ends in the block looked at, as far as it is cached."""
    if not chain:
        why = "choose a cached block: its prefix stands here, by the hashes of the blocks before it"
        return [look.line((text, look.DIM)) for text in look.wrap(why, width)]
    found = [look.line((look.clip("logical     our             hash copies  batch", width), look.DIM))]
    room = height - 1
    shown: list[ChainRow | None] = list(chain)
    if len(chain) > room:
        head = max(0, room // 2 - 1)
        tail = max(1, room - 1 - head)
        shown = [*chain[:head], None, *chain[-tail:]]
    for row in shown:
        if row is None:
            found.append(look.line((f"      … {len(chain) - len(shown) + 1:,} more", look.DIM)))
            continue
        logical = f"{row.depth:,}" if row.depth >= 0 else "?"
        found.append(
            look.line(
                f"{logical:>7} ",
                (f"{row.block:>7} ", look.BOLD),
                (f"{hash_name(row.content)} ", look.DIM),
                (f"{row.copies:>6} ", look.WARN if row.copies > 1 else look.PLAIN),
                f"{row.batch:>6}",
            )
        )
    return found
