"""The selection of the last step: from each sequence's complexity to the blocks it reads, and what that keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text
from textual import events as ui

from tinyserve_viz.analysis.closeups import PRIORITIES, REQUIREMENTS, Choice, Selection
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import BlockChosen, Panel, SequenceChosen, View

_LABEL = 13  # places before a strip
_CURSOR = look.Style(color=look.INK, bgcolor="#ffd75f", bold=True)
_GRADES = (look.DIM, look.WARN, look.GOOD)
_RANKINGS = {
    "box": " by box score",
    "mass": " by true mass",
    "window": " by the mass that queries before gave",
    "order": " by order alone",
}
_NEEDS_FROM = 69  # places from which on the requirement stands in the rows


class SelectionPanel(Panel):
    """A row a sequence, from complexity to blocks; strips of score, mass and choice; then what the choice was worth."""

    NAME = "selection"
    TITLE = "8 selection"
    _rows: tuple[int, ...] = ()  # sequences of the rows shown
    _strip_at = (0, 0, 1)  # first line of the strips, lines, blocks a sign

    def title(self, view: View) -> str:
        chosen = view.frame.selection
        if chosen is None:
            return self.TITLE
        layer = f", layer {chosen.layer} of {chosen.num_layers} (L next)" if chosen.num_layers > 1 else ""
        each = f"{chosen.num_heads} KV heads choose each" if chosen.num_heads > 1 else "one choice for all heads"
        told = view.frame.header.origin.get("selection") or {}
        by = _RANKINGS.get(told.get("ranks_by", ""), "")
        return f"8 selection of step {chosen.step:,} · {chosen.policy}{by}, {each}{layer}"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        chosen = view.frame.selection
        self._rows, self._strip_at = (), (0, 0, 1)
        if chosen is None:
            ran = view.frame.header.origin.get("kernels_run", "none") != "none"
            why = "no sequence decoded in the last step" if ran else "no kernels ran here: nothing was selected"
            return [look.line((text, look.DIM)) for text in look.wrap(why, width)]
        # What there is room for, by its weight: one row, the strips, what was kept, the rates, the bytes, more rows.
        strips, caption = _strips(view, chosen, width, by_head=False)
        left = height - 2 - len(strips)
        rates, told = _rates_in_short(chosen, width), _rates_in_words(chosen, width)
        worth: list[Text] = []
        for part in ([_kept(chosen, width)], _sum(chosen, width), rates, [_bytes(chosen, width)]):
            if len(part) <= left:
                worth += part
                left -= len(part)
        if left > 0 and strips:
            strips, left = [caption, *strips], left - 1
        more = min(left, len(chosen) - 1, 3)
        left -= more
        if left >= len(told) - len(rates) and len(worth) > len(rates):
            left -= len(told) - len(rates)
            worth = [line for line in worth if line not in rates] + told
        by_head, _ = _strips(view, chosen, width, by_head=True)
        if left >= len(by_head) - len(strips) + 1 > 0:
            left -= len(by_head) - len(strips) + 1
            strips = [caption, *by_head]
        further = max(0, min(left, len(chosen) - 1 - more))
        more, left = more + further, left - further
        warning = (view.frame.header.origin.get("selection") or {}).get("warning")
        if warning:
            words = [look.line((text, look.WARN)) for text in look.wrap(f"{chosen.policy}: {warning}", width)]
            worth += words if len(words) <= left else []
        rows = self._chains(view, chosen, width, 1 + more)
        signs = max(8, width - _LABEL)
        self._strip_at = (len(rows), len(strips), max(1, -(-chosen.chosen.shape[1] // signs)))
        return [*rows, *strips, *worth][:height]

    def _chains(self, view: View, chosen: Selection, width: int, room: int) -> list[Text]:
        longest = max(len(view.frame.name(int(seq))) for seq in chosen.seqs.tolist())
        name_width = max(6, min(max(8, longest), width - (61 if width >= _NEEDS_FROM else 51)))
        found = [look.line((look.clip(_head(name_width, width), width), look.DIM))]
        hidden = len(chosen) - room
        shown = room if hidden <= 0 else max(1, room - 1)
        first = max(0, min(max(0, chosen.at) - shown // 2, len(chosen) - shown))
        self._rows = tuple(chosen.seqs[first : first + shown].tolist())
        found += [
            _chain(view, chosen.choice(place), name_width, width, place == chosen.at)
            for place in range(first, first + shown)
        ]
        if hidden > 0 and room > 1:
            found.append(look.line((f"   … {len(chosen) - shown:,} more sequences", look.DIM)))
        return found

    def on_click(self, event: ui.Click) -> None:
        """Choose the sequence of the row, or the block of the sign, under the mouse."""
        place = event.get_content_offset(self)
        if self.view is None or place is None or self.view.frame.selection is None:
            return
        table = self.view.frame.table
        first, lines, run = self._strip_at
        logical = (place.x - _LABEL) * run
        if 1 <= place.y <= len(self._rows):
            self.post_message(SequenceChosen(self._rows[place.y - 1]))
        elif first <= place.y < first + lines and place.x >= _LABEL and logical < len(table):
            self.post_message(BlockChosen(int(table.physical[logical])))


def _head(name_width: int, width: int) -> str:
    needs = "   needs  " if width >= _NEEDS_FROM else ""
    return f"   {'sequence':<{name_width}} complexity{needs}   score   priority reads       keeps"


def _chain(view: View, choice: Choice, name_width: int, width: int, here: bool) -> Text:
    arrow = (" → ", look.FAINT)
    text = look.line(
        ("▸" if here else " ", look.KEY),
        (look.owner_letter(choice.seq), look.owner_style(choice.seq)),
        (f" {look.clip(view.frame.name(choice.seq), name_width):<{name_width}}", look.BOLD if here else look.PLAIN),
        f" {choice.complexity:>10.2f}",
        arrow,
    )
    if width >= _NEEDS_FROM:
        text.append_text(look.line((f"{REQUIREMENTS[choice.requirement]:<7}", _GRADES[choice.requirement]), arrow))
    keeps = "–" if choice.retained is None else f"{choice.retained[0]:.2f}"
    text.append_text(
        look.line(
            f"{choice.score:>5.2f}",
            arrow,
            (f"{PRIORITIES[choice.priority]:<8} ", _GRADES[choice.priority]),
            f"{f'{choice.kept:,} of {choice.num_blocks:,}':<11} ",
            (f"{keeps:>5}", look.DIM if choice.retained is None else _quality(choice.retained[0])),
        )
    )
    return text


def _quality(share: float) -> look.Style:
    """Green from nine tenths of the attention on, red below half of it."""
    return look.GOOD if share >= 0.9 else look.WARN if share >= 0.5 else look.BAD


def _strips(view: View, chosen: Selection, width: int, by_head: bool) -> tuple[list[Text], Text]:
    """Score, mass and choice of the chosen sequence, a sign a block or a run of blocks, and a line that says so."""
    blocks = chosen.chosen.shape[1]
    if chosen.at < 0 or not blocks:
        return [], look.line((look.clip(chosen.no_scores, width), look.DIM))
    run = -(-blocks // max(8, width - _LABEL))
    name = view.frame.name(int(chosen.seqs[chosen.at]))
    each = "a sign a block" if run == 1 else f"1 sign = the highest of {run}"
    budget = f"{chosen.choice(chosen.at).budget:,}{' a head' if chosen.num_heads > 1 else ''}"
    told = f"{name}: budget {budget} of {blocks:,} blocks; {each}; ■ read, □ not"
    caption = look.line((look.clip(told, width), look.DIM))
    logical = view.frame.table.logical_of(view.cursor) if view.cursor >= 0 else -1
    here = logical // run if logical >= 0 else -1
    scores = chosen.scores
    if not by_head or len(chosen.chosen) == 1:
        seen = None if scores is None else (scores.score.max(axis=0), scores.mass.mean(axis=0))
        found = _strip("", seen, np.asarray(chosen.chosen.any(axis=0)), run, here)
    else:
        found = []
        for head, choice in enumerate(chosen.chosen):
            seen = None if scores is None else (scores.score[head], scores.mass[head])
            found += _strip(f"head {head} ", seen, choice, run, here)
    if scores is None:
        found.append(look.line((look.clip(chosen.no_scores, width), look.DIM)))
    return found, caption


def _strip(
    whose: str, seen: tuple[NDArray[Any], NDArray[Any]] | None, choice: NDArray[Any], run: int, here: int
) -> list[Text]:
    rows: list[tuple[str, list[tuple[str, look.Style]]]] = []
    if seen is not None:
        score, mass = _highest(seen[0], run), _highest(seen[1], run)
        low, high = float(score.min()), float(score.max())
        bars = [look.level(value - low, high - low) for value in score.tolist()]
        rows.append((f"{whose}score" if whose else "box score", [(sign, look.GOOD) for sign in bars]))
        bars = [look.level(value, float(mass.max())) for value in mass.tolist()]
        rows.append((f"{whose}mass" if whose else "true mass", [(sign, look.WARN) for sign in bars]))
    read = [("■", look.PLAIN) if some else ("□", look.FAINT) for some in _highest(choice, run).tolist()]
    rows.append((f"{whose}read" if whose else "read", read))
    found = []
    for name, signs in rows:
        text = look.line((f"{name:<{_LABEL}}", look.DIM))
        for place, (sign, style) in enumerate(signs):
            text.append(sign, _CURSOR if place == here else style)
        found.append(text)
    return found


def _highest(values: NDArray[Any], run: int) -> NDArray[Any]:
    """The highest of each `run` neighbours."""
    return values if run == 1 else np.maximum.reduceat(values, np.arange(0, len(values), run))


def _sum(chosen: Selection, width: int) -> list[Text]:
    """How the score of the chosen sequence comes about, and what its priority means."""
    rule = chosen.rule
    if rule is None or chosen.at < 0:
        return []
    choice = chosen.choice(chosen.at)
    history = (choice.terms or (0.0, 0.0, 0.0))[2] / (rule.history / 1000) if rule.history else 0.0
    text = look.line(
        f"score {choice.score:.2f}",
        (f" = {rule.complexity / 1000:g} × complexity {min(choice.complexity, 1.0):.2f}", look.DIM),
        (f" + {rule.requirement / 1000:g} × need {choice.requirement}", look.DIM),
        (f" + {rule.history / 1000:g} × history {history:.2f}", look.DIM),
    )
    if width >= text.cell_len + 34:
        text.append(f"; high above {rule.threshold / 1000:g}, medium above {rule.threshold / 2000:g}", look.DIM)
    text.truncate(width, overflow="ellipsis")
    return [text]


def _kept(chosen: Selection, width: int) -> Text:
    event = chosen.event
    if not len(event.retained):
        return look.line((look.clip("attention did not run: what the choice keeps is not known", width), look.DIM))
    text = look.line("keeps ")
    if chosen.at >= 0:
        choice = chosen.choice(chosen.at)
        mean, worst = choice.retained or (0.0, 0.0)
        text.append(f"{mean:.3f}", _quality(mean))
        text.append(" of its attention")
        if choice.oracle_retained is not None:
            text.append(f", the oracle {choice.oracle_retained:.3f}")
        text.append("; ")
        if width >= 100:
            text.append(f"worst head {worst:.3f}; ", look.DIM)
    text.append(f"all sequences {float(event.retained.mean()):.3f}", look.DIM)
    text.truncate(width, overflow="ellipsis")
    return text


def _bytes(chosen: Selection, width: int) -> Text:
    event = chosen.event
    share = f"{100 * event.tokens_read / event.tokens_held:.0f} %" if event.tokens_held else "–"
    text = look.line("reads ", (share, look.BOLD))
    if event.bytes_dense:
        text.append(f", {_size(event.bytes_read)} of {_size(event.bytes_dense)}")
        text.append(f", {_size(event.bytes_to_choose)} to choose", look.DIM)
        text.append(f"; resident {_size(event.bytes_resident)}", look.DIM)
    else:
        text.append(" of the K/V; all of it stays resident", look.DIM)
    text.truncate(width, overflow="ellipsis")
    return text


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**10:,.1f} KiB" if num_bytes < 2**20 else f"{num_bytes / 2**20:,.1f} MiB"


def _rates_in_short(chosen: Selection, width: int) -> list[Text]:
    rates = []
    for rate in chosen.rates:
        warning = " (near chance)" if rate.others.endswith("near chance") else ""
        rates.append(f"{rate.name} {look.percent(rate.value, 0)}{warning}".replace(" ", "\xa0"))
    return [look.line((text.replace("\xa0", " "), look.PLAIN)) for text in look.wrap(" · ".join(rates), width)]


def _rates_in_words(chosen: Selection, width: int) -> list[Text]:
    found = []
    for rate in chosen.rates:
        meaning = rate.meaning if rate.value is not None else "not measured in this step"
        if rate.others and len(meaning) + len(rate.others) + 28 <= width:
            meaning += f" ({rate.others})"
        words = (look.clip(meaning, width - 25), look.DIM)
        found.append(look.line(f"{rate.name:<17}{look.percent(rate.value, 0):>6}  ", words))
    event = chosen.event
    if len(event.slack_least):
        least, mean = float(event.slack_least.min()), float(event.slack_mean.mean())
        slack = f"box score above a block's largest logit by {mean:.1f} on average, {least:.1f} at least"
        found.append(look.line((look.clip(slack, width), look.DIM if least >= 0 else look.BAD)))
    return found
