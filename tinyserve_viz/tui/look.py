"""What the panels share of looks: colours, glyphs, small bars, and how everything reads on an ASCII terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style as Style
from rich.text import Text

# Okabe and Ito's colours for the colour-blind (https://jfly.uni-koeln.de/color/), lightened to carry dark letters.
OWNER_COLOURS = ("#56b4e9", "#e69f00", "#2fb68c", "#cc79a7", "#f0e442", "#7c9cf5", "#e8743b", "#c9b18a")
# Sequential, dark to bright, as viridis: brightness alone tells more from less.
RAMP = ("#3d3a6b", "#3b528b", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")

INK = "#101216"  # letters on a coloured cell
DIM = Style(color="#9a9a9a")
FAINT = Style(color="#626262")
PLAIN = Style()
BOLD = Style(bold=True)
KEY = Style(color="#ffd75f", bold=True)
CACHED_STYLE = Style(color="#a39a78", bgcolor="#25231c")
UNTOLD_STYLE = Style(color="#56b4e9", bgcolor="#1a2a33")
GOOD, WARN, BAD = Style(color="#2fb68c"), Style(color="#e69f00"), Style(color="#ff7b54")
ACTIVE_BORDER, BORDER = "#ffd75f", "#4a4a4a"
MARK_STYLES = {
    "P": Style(color="#ff7b54", bold=True),
    "X": Style(color="#ff7b54", bold=True, reverse=True),
    "E": Style(color="#e69f00"),
    "C": Style(color="#56b4e9"),
    "F": Style(color="#2fb68c"),
    "K": Style(color="#cc79a7", bold=True),
    "G": Style(color="#ff7b54", bold=True, reverse=True),
    "?": Style(color="#ff7b54", bold=True),
    "Z": Style(color="#cc79a7", bold=True),
}

GLYPH_FREE, GLYPH_CACHED, GLYPH_NULL, GLYPH_UNTOLD = "·", "░", "×", "▒"
LEVELS = "▁▂▃▄▅▆▇█"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Every sign that we use beyond ASCII, one for one, so that nothing moves.
_ASCII = str.maketrans(
    {"·": ".", "░": "%", "×": "x", "▁": "_", "▂": "_", "▃": "-", "▄": "-", "▅": "=", "▆": "=", "▇": "#", "█": "#"}
    | {"→": ">", "←": "<", "↑": "^", "↓": "v", "▸": ">", "▶": ">", "‖": "=", "‹": "<", "›": ">", "≤": "<", "≥": ">"}
    | {"├": "[", "┤": "]", "─": "-", "│": "|", "┬": "+", "┴": "+", "└": "+", "●": "o", "■": "#", "□": ".", "◆": "!"}
    | {"▒": "#", "▓": "#", "┌": "+", "┐": "+", "┘": "+", "┼": "+", "○": "o"}
    | {"–": "-", "—": "-", "…": "~", "µ": "u", "²": "2", "Σ": "+"}
    | dict.fromkeys(map(chr, range(0x2801, 0x2900)), "*")  # the dots of plots
)


def to_ascii(text: str) -> str:
    """`text` for an ASCII terminal, of the same length."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


def owner_letter(seq: int) -> str:
    """The letter of a sequence in the map and the list; after 26 they repeat in another colour."""
    return _LETTERS[seq % len(_LETTERS)]


def owner_style(seq: int) -> Style:
    """The colour of a sequence, for letters and bars."""
    return _OWNERS[seq % len(OWNER_COLOURS)]


def owner_chip(seq: int) -> Style:
    """Dark letters on the colour of a sequence: a full block."""
    return _CHIPS[seq % len(OWNER_COLOURS)]


def owner_shade(seq: int) -> Style:
    """Letters in the colour of a sequence on a dark shade of it: a block that is not full."""
    return _SHADES[seq % len(OWNER_COLOURS)]


def ramp(share: float) -> Style:
    """A cell whose brightness says where 0 … 1 it stands."""
    place = max(0, min(len(RAMP) - 1, round(share * (len(RAMP) - 1))))
    return Style(color=INK if place > 3 else "#f0f0f0", bgcolor=RAMP[place])


def ramp_text(share: float) -> Style:
    """The colour of `ramp` for signs on the plain ground; its dark end is too dark for that."""
    return Style(color=RAMP[max(2, min(len(RAMP) - 1, round(share * (len(RAMP) - 1))))])


def _shade(colour: str) -> str:
    parts = (int(colour[at : at + 2], 16) * 30 // 100 for at in (1, 3, 5))
    return "#" + "".join(f"{part:02x}" for part in parts)


_OWNERS = tuple(Style(color=colour) for colour in OWNER_COLOURS)
_CHIPS = tuple(Style(color=INK, bgcolor=colour, bold=True) for colour in OWNER_COLOURS)
_SHADES = tuple(Style(color=colour, bgcolor=_shade(colour), bold=True) for colour in OWNER_COLOURS)


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
    """`6.8 %`, with a figure more where it would read 0.0, or a dash where there is nothing to measure."""
    if value is None:
        return "–"
    return f"{100 * value:.{digits + (0 < abs(value) < 0.5 * 0.1 ** (digits + 2))}f} %"


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
