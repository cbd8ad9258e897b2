"""What keeps the cache in order: protection levels and the hot region at the left, compaction at the right."""

from __future__ import annotations

import numpy as np
from rich.text import Text

from tinyserve_viz.analysis.closeups import BLOCK_KINDS, NUM_LEVELS, Compaction
from tinyserve_viz.analysis.sentences import count, duration
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, View

_GAP = 3
_SIGNS = {
    "free": (look.GLYPH_FREE, look.FAINT),
    "cached": (look.GLYPH_CACHED, look.CACHED_STYLE),
    "live": ("█", look.DIM),
    "pinned": ("P", look.Style(color=look.INK, bgcolor="#cc79a7", bold=True)),
    "moves": ("-", look.Style(color=look.INK, bgcolor="#e69f00", bold=True)),
    "is filled": ("+", look.Style(color=look.INK, bgcolor="#2fb68c", bold=True)),
}
_BEFORE = "before"


class UpkeepPanel(Panel):
    """Levels of the blocks and this window's counts; what a compaction would do now, or has just done."""

    NAME = "upkeep"
    TITLE = "0 upkeep"

    def title(self, view: View) -> str:
        found = view.frame.compaction
        told = "" if found is None else ", what compaction did" if found.done else ", what compaction would do now"
        return f"0 upkeep · protection levels{told}"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        right = _compaction(view, max(20, min(width - 26, max(width * 58 // 100, 48)) - _GAP), height)
        left = _levels(view, width - max((text.cell_len for text in right), default=0) - _GAP, height)
        found: list[Text] = []
        left_width = max((text.cell_len for text in left), default=0)
        for row in range(min(height, max(len(left), len(right)))):
            text = left[row] if row < len(left) else look.line()
            if row < len(right):
                text.append(" " * (left_width + _GAP - text.cell_len))
                text.append_text(right[row])
            text.truncate(width, overflow="ellipsis")
            found.append(text)
        return found


def _levels(view: View, width: int, height: int) -> list[Text]:
    levels = view.frame.levels
    if levels is None or view.frame.header.origin.get("kernels_run", "none") == "none":
        return _wrapped("no kernels ran: accesses are not counted and no block is protected", width)
    past = [spread for step, spread in view.history.levels if step <= view.frame.step][-max(0, min(24, width - 30)) :]
    most = max(1, *levels.spread)
    bar_width = max(3, min(16 if height > 8 else 8, width - 16 - len(past)))
    head = f"level {'blocks':>7}  {'':{bar_width}}"
    found = [look.line((f"{head} {'by window' if len(past) > 8 else ''}".rstrip(), look.DIM))]
    for level in reversed(range(NUM_LEVELS)):
        style = look.ramp_text(level / (NUM_LEVELS - 1))
        bar = look.bar(levels.spread[level] / most, bar_width)
        text = look.line(f"{level:>5} {levels.spread[level]:>7,}  ", (bar, style))
        if past:
            series = [spread[level] for spread in past]
            text.append(" ")
            text.append(look.sparkline(series, max(1, max(max(spread) for spread in past))), style)
        found.append(text)
    rate = "no prefix lookups"
    if levels.lookups:
        rate = f"hit {100 * levels.hits / levels.lookups:.0f} % of {levels.lookups:,} prefix lookups"
    words = [f"window: step {levels.done} of {levels.window}; {rate}", f"{levels.accesses:,} accesses by selections"]
    if view.frame.header.engine.eviction == "seed":
        hits = levels.hot_requests - levels.hot_misses
        got = f"{hits:,} of {levels.hot_requests:,} hot requests got one"
        words.append(f"hot region: blocks below {levels.hot_size:,}; {got}")
    for sentence in words:
        found += _wrapped(sentence, width)
    return found[:height]


def _compaction(view: View, width: int, height: int) -> list[Text]:
    found = view.frame.compaction
    if found is None:
        told = view.frame.stream is None
        why = "this allocator reserves ranges: there are no blocks to move" if told else "block ids are not told"
        return _wrapped(why, width)
    preview, plan = found.plan, found.plan.plan
    verb = "moved" if found.done else "would move"
    moves = ", ".join(f"{src} → {dst}" for src, dst in zip(plan.src[:3].tolist(), plan.dst[:3].tolist(), strict=True))
    span = f"{plan.frag_permille_before / 1000:.2f} → {plan.frag_permille_after / 1000:.2f}"
    cost = f"reads + writes {preview.num_bytes / 2**20:.2f} MiB"
    if preview.predicted_us is not None:
        cost += f", {duration(preview.predicted_us)} predicted"
    signs, caption = _strips(found, width)
    verdict = "done in this event" if found.done else preview.verdict
    said = [
        look.line(
            (f"{preview.rule_name} {verb} {count(len(plan.src), 'block')}", look.BOLD),
            (f": {moves}" if moves else "", look.DIM),
        ),
        *_wrapped(verdict, width, look.KEY),
        look.line(f"span {span} × live", (f", trigger {preview.rule.trigger / 1000:g}", look.DIM)),
        look.line(cost),
        look.line(
            f"{plan.pinned:,} of {plan.live:,} live blocks pinned",
            (f", weight ≥ {preview.rule.threshold / 1000:g}" if plan.pinned else "", look.DIM),
        ),
    ]
    rows = [said[0], *signs, *said[1:]]
    if height > len(rows):
        rows.insert(1 + len(signs), caption)
    for sentence in preview.costs():
        more = _wrapped(sentence, width)
        if len(rows) + len(more) <= height:
            rows += more
    for row in rows:
        row.truncate(width, overflow="ellipsis")
    return rows[:height]


def _wrapped(words: str, width: int, style: look.Style = look.DIM) -> list[Text]:
    return [look.line((text, style)) for text in look.wrap(words, width)]


def _strips(found: Compaction, width: int) -> tuple[list[Text], Text]:
    """The pool before and after, a sign a block, or its share of live blocks where a sign stands for several."""
    room = max(8, width - len(_BEFORE) - 1)
    run = -(-len(found.kinds) // room)
    before, after = look.line((f"{_BEFORE} ", look.DIM)), look.line(("after  ", look.DIM))
    if run == 1:
        for kind, live in zip(found.kinds.tolist(), found.after.tolist(), strict=True):
            before.append(*_SIGNS[BLOCK_KINDS[kind]])
            plain = "live" if live else "cached" if BLOCK_KINDS[kind] == "cached" else "free"
            after.append(*_SIGNS["pinned" if live and BLOCK_KINDS[kind] == "pinned" else plain])
        caption = look.line()
        for kind in ("moves", "is filled", "pinned"):
            caption.append(*_SIGNS[kind])
            caption.append(f" {kind}  ", look.DIM)
        return [before, after], caption
    starts = np.arange(0, len(found.kinds), run)
    sizes = np.minimum(run, len(found.kinds) - starts)
    for text, live in ((before, (found.kinds >= 2) & (found.kinds <= 4)), (after, found.after)):
        shares = np.add.reduceat(live.astype(np.int64), starts) / sizes
        for share in shares.tolist():
            text.append(look.level(share, 1.0) if share else look.GLYPH_FREE, look.GOOD if share else look.FAINT)
    return [before, after], look.line((f"1 sign = {run:,} blocks; height: share live", look.DIM))
