"""The last events in words, the newest on top: what was done and by which rule."""

from __future__ import annotations

from rich.text import Text

from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import Panel, View

_NOTHING = (
    "nothing has happened yet: the pool is empty",
    "space plays · n one event on, p one back · N and P one step · ? lists every key",
)


class Why(Panel):
    """The newest sentence in full, older ones below it as far as there is room."""

    NAME = "why"
    TITLE = "2 why"

    def title(self, view: View) -> str:
        said = view.frame.said
        step = "step" if view.frame.stream is None else "batch"
        return f"2 why · event {said[-1].index + 1:,} of {step} {said[-1].step:,}: {said[-1].kind}" if said else "2 why"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        if not view.frame.said:
            return [look.line((text, look.DIM)) for sentence in _NOTHING for text in look.wrap(sentence, width)]
        found: list[Text] = []
        number = len(f"{view.frame.said[-1].index + 1:,}")
        for age, said in enumerate(reversed(view.frame.said)):
            head = f"{said.index + 1:>{number},}  "
            pieces = look.wrap(said.text, width, head, " " * len(head))
            if age and len(found) + len(pieces) > height:
                break
            for place, piece in enumerate(pieces):
                cut = len(head)
                label = (piece[:cut], look.KEY if not age and not place else look.FAINT)
                found.append(look.line(label, (piece[cut:], look.BOLD if not age else look.DIM)))
        return found[:height]
