"""What the panels share of looks: colours, glyphs, small bars, and how everything reads on an ASCII terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style as Style
from rich.text import Text

OWNER_COLOURS = (
    "#5fafff", "#ffaf5f", "#87d75f", "#ff87af", "#d7af00", "#5fd7d7",
    "#af87ff", "#ff8787", "#afd7af", "#d787d7", "#87afaf", "#d7d787",
)  # fmt: skip
REF_COLOURS = ("#808080", "#87afd7", "#d7d75f", "#ffaf5f", "#ff8700", "#ff5f5f")
HEAT_COLOURS = ("#ff5f5f", "#ff8700", "#ffaf5f", "#d7d75f", "#87d75f", "#5fafaf", "#5f87af", "#5f5faf", "#585878")

DIM = Style(color="#8a8a8a")
FAINT = Style(color="#5f5f5f")
PLAIN = Style()
BOLD = Style(bold=True)
KEY = Style(color="#ffd75f", bold=True)
CACHED_STYLE = Style(color="#87875f")
GOOD, WARN, BAD = Style(color="#87d75f"), Style(color="#ffaf5f"), Style(color="#ff5f5f")
MARK_STYLES = {
    "P": Style(color="#ff5f5f", bold=True),
    "X": Style(color="#ff5f5f", bold=True),
    "E": Style(color="#ffaf5f"),
    "C": Style(color="#5fd7d7"),
    "F": Style(color="#87d75f"),
    "K": Style(color="#af87ff", bold=True),
}

GLYPH_FREE, GLYPH_CACHED, GLYPH_NULL = "·", "░", "×"
LEVELS = "▁▂▃▄▅▆▇█"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Every sign that we use beyond ASCII, one for one, so that nothing moves.
_ASCII = str.maketrans(
    "·░×▁▂▃▄▅▆▇█→–—…µ▸●├┤─│■□▶‖‹›²←↑↓",
    ".%x__--==##>--~u>o[]-|#o>=<>2<^v",
)


def to_ascii(text: str) -> str:
    """`text` for an ASCII terminal, of the same length."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def owner_letter(seq: int) -> str:
    """The letter of a sequence in the map and the list; after 26 they repeat in another colour."""
    return _LETTERS[seq % len(_LETTERS)]


def owner_style(seq: int) -> Style:
    """The colour of a sequence."""
    return Style(color=OWNER_COLOURS[seq % len(OWNER_COLOURS)])


def level(part: float, whole: float) -> str:
    """One of eight bars for `part` of `whole`."""
    if whole <= 0:
        return LEVELS[0]
    return LEVELS[max(0, min(7, round(part / whole * 8) - 1))]


def sparkline(values: Sequence[float], top: float | None = None) -> str:
    """One bar a value, the highest (or `top`) being full."""
    highest = top if top is not None else max(values, default=0.0)
    return "".join(level(value, highest) for value in values)


def bar(share: float, width: int) -> str:
    """A horizontal bar of `width` places for a share from 0 to 1."""
    filled = round(max(0.0, min(1.0, share)) * width)
    return "█" * filled + "·" * (width - filled)


def percent(value: float | None, digits: int = 1) -> str:
    """`6.8 %`, or a dash where there is nothing to measure."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def short_count(number: int) -> str:
    """At most five places: `970`, `12.4k`, `3.1M`."""
    if number < 10_000:
        return str(number)
    return f"{number / 1000:.1f}k" if number < 1_000_000 else f"{number / 1e6:.1f}M"


def clip(text: str, width: int) -> str:
    """`text` in at most `width` places, cut with an ellipsis."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def wrap(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """`text` in lines of at most `width` places, the first after `first`, the others after `rest`."""
    lines, line = [], first
    start = len(first)
    for word in text.split(" "):
        if len(line) > start and len(line) + 1 + len(word) > width:
            lines.append(line)
            line, start = rest, len(rest)
        line += (" " if len(line) > start else "") + word
    lines.append(line)
    return [clip(line, width) for line in lines]


def line(*parts: str | tuple[str, Style]) -> Text:
    """A line of styled parts that is neither wrapped nor interpreted as markup."""
    text = Text(no_wrap=True, end="")
    for part in parts:
        if isinstance(part, str):
            text.append(part)
        else:
            text.append(part[0], part[1])
    return text
