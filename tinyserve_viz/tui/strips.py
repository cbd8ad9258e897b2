"""The lines around the panels: the header, the timeline with its marks, and the footer with the keys."""

from __future__ import annotations

from rich.style import Style
from rich.text import Text
from textual import events as ui

from tinyserve_viz.analysis.history import MARK_WORDS, STREAM_MARK_WORDS, strip_of_marks
from tinyserve_viz.analysis.sentences import seconds
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, PositionChosen, View

STAGES = (
    ("arrivals", ("ClockJumped", "RequestsArrived", "RequestRejected", "RequestCancelled")),
    ("admit", ("SequenceAdmitted", "SequenceSeated")),
    ("preempt", ("SequencePreempted",)),
    ("evict", ("BlocksEvicted",)),
    ("allocate", ("BlocksPlaced", "BlocksAllocated", "RangeReserved")),
    ("copy", ("BlocksCopied",)),
    ("write", ("TokensWritten", "BlocksCached")),
    ("fork", ("SequencesForked",)),
    ("select", ("BlocksSelected",)),
    ("adapt", ("LevelsAdapted",)),
    ("compact", ("CompactionPlanned",)),
    ("free", ("BlocksFreed", "RangesFreed", "SequencesFinished")),
    ("end", ("KernelsTimed", "StepEnded")),
)

STREAM_STAGES = (
    ("gap", ("StreamGap",)),
    ("stored", ("StreamStored",)),
    ("evicted", ("StreamRemoved",)),
    ("cleared", ("StreamCleared",)),
    ("unknown", ("StreamUnknown",)),
    ("end", ("StreamBatchEnded",)),
)


class HeaderLine(Panel):
    """What is replayed, and where in it we are; with room, the stage of the step that the last event belongs to."""

    NAME = "header"
    BORDERED = False

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        frame = view.frame
        engine, model = frame.header.engine, frame.header.model
        more = "…" if view.replaying else ""
        step = "step" if frame.stream is None else "batch"
        where = f"{step} {frame.step:,} · event {frame.position:,}/{frame.num_events:,}{more}"
        where += f" · t {seconds(frame.time_us)}"
        state = f"▶ {view.speed}" if view.playing else "‖ paused"
        state += f" ◆{len(view.breaks)}" if view.breaks else ""
        name = frame.header.origin["trace"]["name"]
        gpu = frame.header.origin.get("backend") == "cuda"
        what: tuple[str, ...] = (
            f"{engine.allocator} {engine.eviction} {engine.num_blocks:,} × {engine.block_size}",
            f"profile {frame.header.origin['profile']}",
            f"{model.num_heads}/{model.num_kv_heads} heads × {model.head_dim}",
            *([f"{frame.header.origin['backend']} on {frame.header.origin['device']}"] if gpu else []),
        )
        if frame.stream is not None:
            what = ("KV-event stream", "requests unknown", f"blocks of {engine.block_size}")
        room = width - len(where) - len(state) - 4
        left = look.clip(name, max(8, room))
        about = ""
        for part in what:
            if len(left) + len(about) + len(part) + 3 <= room:
                about += f" · {part}"
        text = look.line((left, look.BOLD), (about, look.DIM))
        text.append(" " * max(1, width - text.cell_len - len(where) - len(state) - 2))
        text.append(where)
        text.append(f"  {state}", look.GOOD if view.playing else look.KEY)
        found = [text]
        if height > 1:
            found.append(_stages(view, width))
        return found


def _stages(view: View, width: int) -> Text:
    kind = view.frame.said[-1].kind if view.frame.said else ""
    stream = view.frame.stream is not None
    text = look.line(("in a batch: " if stream else "in a step: ", look.FAINT))
    for place, (name, kinds) in enumerate(STREAM_STAGES if stream else STAGES):
        if place:
            text.append(" › ", look.FAINT)
        current = kind in kinds
        text.append(f"[{name}]" if current else name, look.KEY if current else look.DIM)
    text.truncate(width)
    return text


class TimelineStrip(Panel):
    """The whole recording on a line: marks where something notable happened, and where we are."""

    NAME = "timeline"
    BORDERED = False

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        frame, history = view.frame, view.history
        inner = max(1, width - 2)
        total = max(1, frame.num_events)
        marks = strip_of_marks(history.marks, total, inner)
        here = min(inner - 1, frame.position * inner // total)
        text = look.line(("├", look.DIM))
        for place, mark in enumerate(marks):
            style = look.MARK_STYLES.get(mark, look.FAINT if place > here else look.DIM)
            if place == here:
                text.append("●" if mark == " " else mark, Style(color="#000000", bgcolor="#ffd75f", bold=True))
            else:
                text.append("─" if mark == " " else mark, style)
        text.append("┤", look.DIM)
        found = [text]
        if height > 1:
            legend = look.line((" ● you are here", look.KEY))
            for mark, word in (MARK_WORDS if frame.stream is None else STREAM_MARK_WORDS).items():
                legend.append("   ")
                legend.append(mark, look.MARK_STYLES[mark])
                legend.append(f" {word}", look.DIM)
            if view.breaks:
                legend.append(look.clip(f"   ◆ stops at {', '.join(view.breaks)}", width - legend.cell_len), look.KEY)
            found.append(legend)
        return found

    def on_click(self, event: ui.Click) -> None:
        """Go to the place under the mouse."""
        place = event.get_content_offset(self)
        if self.view is not None and place is not None:
            inner = max(1, self.size.width - 2)
            share = max(0, min(inner, place.x - 1))
            self.post_message(PositionChosen(share * self.view.frame.num_events // inner))


FOOTER_KEYS = (
    ("space", "play"), ("n/p", "event"), ("N/P", "step"), ("g/G", "ends"), (":", "go to"), ("/", "find"),
    ("c", "colours"), ("tab", "panel"), ("enter", "inspect"), ("b/B", "break"), ("z", "zoom"), ("+/-", "speed"),
    ("?", "help"),
    ("q", "quit"),
)  # fmt: skip
_ALWAYS = ("?", "q")
_ROOM_FOR_WORD = 70  # places from which on the content is named as such


class FooterLine(Panel):
    """The most used keys, as many as fit, or what was just done; at the right what stands in for a model's K and V."""

    NAME = "footer"
    BORDERED = False

    def lines(self, view: View, width: int, height: int) -> list[Text]:  # noqa: ARG002 - one line
        told = "none told" if view.frame.stream is not None else view.frame.header.content.describe()
        content = look.clip(told, 24)
        content = f" content {content} " if width >= _ROOM_FOR_WORD else f" {content} "
        width -= len(content)
        text = look.line()
        if view.notice:
            text.append(f"{look.clip(f' {view.notice}', width):<{width}}", look.KEY)
            text.append(content, look.DIM)
            return [text]
        room = width - sum(len(key) + len(word) + 3 for key, word in FOOTER_KEYS if key in _ALWAYS)
        for key, word in FOOTER_KEYS:
            size = len(key) + len(word) + 3
            if key not in _ALWAYS:
                if size > room:
                    continue
                room -= size
            text.append(f" {key}", look.KEY)
            text.append(f" {word} ", look.DIM)
        text.append(" " * (width - text.cell_len))
        text.append(content, look.DIM)
        return [text]
