"""The picture of the pool: every block as a glyph and a colour, in the order of their ids.

One widget draws pools of any size: small ones with four places a block (holder, how full, references), larger ones
with one place a block, and the largest with one place for a run of neighbouring blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from rich.text import Text
from textual import events as ui

from tinyserve_viz.analysis.frame import CACHED, FREE, NULL, UNTOLD, Frame
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import BlockChosen, Panel, View

MODES = ("owner", "references", "filled", "age", "accesses", "level", "weight")
MODES_WITHOUT_KERNELS = MODES[:4]
_OF_CONTENT = MODES[3:]  # what cached blocks without a holder have too
_LABEL = 7  # places of the block id at the left of a row
_CURSOR = Style(color="#ffd75f", bgcolor=look.INK, reverse=True, bold=True)
_TOUCHED = Style(underline=True, bold=True, color=look.INK, bgcolor="#ffffff")
_WIDE = 4
_ROOMY = 9  # lines from which on legend and sentence get two lines each
_EDGE = -9  # owner of places behind the last block


@dataclass(frozen=True, slots=True)
class Grid:
    """How blocks lie on the screen: `rows` × `per_row` cells of `cell` places, each for `blocks` neighbours."""

    per_row: int
    rows: int
    cell: int
    blocks: int
    first: int  # block in the first cell

    def place(self, index: int) -> int:
        """The column of the cell with this index in its row; cells of one place stand in groups of 16."""
        return _LABEL + index * self.cell + index // _group(self.cell)

    def block_at(self, x: int, y: int) -> int:
        """The block under a place, or −1."""
        for index in range(self.per_row):
            left = self.place(index)
            if left <= x < left + max(1, self.cell - (self.cell > 1)) and 0 <= y < self.rows:
                return self.first + (y * self.per_row + index) * self.blocks
        return -1


def grid_for(num_blocks: int, width: int, height: int, zoomed: bool = False, cursor: int = 0) -> Grid:
    """The largest cells that show the whole pool; `zoomed` shows one block a place, the page with the cursor."""
    height = max(1, height)
    wide = _largest(width, _WIDE)
    if wide >= 8 and -(-num_blocks // wide) <= height:
        return Grid(wide, -(-num_blocks // wide), _WIDE, 1, 0)
    narrow = max(8, _largest(width, 1))
    rows = -(-num_blocks // narrow)
    if rows <= height:
        return Grid(narrow, rows, 1, 1, 0)
    if zoomed:
        page = narrow * height
        first = max(0, cursor) // page * page
        return Grid(narrow, min(height, -(-(num_blocks - first) // narrow)), 1, 1, first)
    blocks = 2
    while -(-num_blocks // (narrow * blocks)) > height:  # 2, 3, 4, 6, 8, 12 …: round ids at the left of the rows
        blocks = blocks * 4 // 3 if blocks % 3 == 0 else blocks * 3 // 2 if blocks > 2 else 3
    return Grid(narrow, -(-num_blocks // (narrow * blocks)), 1, blocks, 0)


def _group(cell: int) -> int:
    """Cells that stand together before a gap."""
    return 8 if cell > 1 else 16


def _largest(width: int, cell: int) -> int:
    """Cells in a row: as many times eight as fit, with their gaps."""
    room = width - _LABEL
    count = room // cell // 8 * 8
    while count and count * cell + (count - 1) // _group(cell) > room:
        count -= 8
    if cell > 1 and count:
        return 1 << count.bit_length() - 1  # 8, 16, 32 …: ids that one reckons with
    return count if count else 8 if cell == 1 and room >= 8 else 0


def kinds(frame: Frame, grid: Grid) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The owner of every cell, of its block or the most frequent one of its blocks, and whether it has all of them."""
    end = min(frame.num_blocks, grid.first + grid.rows * grid.per_row * grid.blocks)
    owner = frame.owner[grid.first : end]
    if grid.blocks == 1:
        return owner, np.ones(len(owner), dtype=np.bool_)
    cells = _runs(owner, grid.blocks, fill=_EDGE)
    ordered = np.sort(cells, axis=1)
    # Length of the run of equal owners that ends at each place; the longest run's owner is the most frequent.
    places = np.arange(grid.blocks)
    new = np.ones_like(ordered, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = np.maximum.accumulate(np.where(new, places, 0), axis=1)
    lengths = np.where(ordered == _EDGE, -1, places - starts)
    most: NDArray[np.int32] = ordered[np.arange(len(ordered)), lengths.argmax(axis=1)]
    return most, ((cells == most[:, None]) | (cells == _EDGE)).all(axis=1)


def _runs(values: NDArray[np.int32], blocks: int, fill: int) -> NDArray[np.int32]:
    short = -len(values) % blocks
    padded = np.concatenate([values, np.full(short, fill, dtype=values.dtype)]) if short else values
    return padded.reshape(-1, blocks)


def _reduced(values: NDArray[np.int32], frame: Frame, grid: Grid, how: str) -> NDArray[np.int32]:
    part = values[grid.first : min(frame.num_blocks, grid.first + grid.rows * grid.per_row * grid.blocks)]
    if grid.blocks == 1:
        return part
    if how == "max":
        return np.asarray(_runs(part, grid.blocks, 0).max(axis=1))
    if how == "min":
        return np.asarray(_runs(part, grid.blocks, 1 << 30).min(axis=1))
    return np.asarray(_runs(part, grid.blocks, 0).mean(axis=1).round().astype(np.int32))


Cell = tuple[tuple[str, Style], ...]
"""The pieces of a cell: `_WIDE` − 1 signs in all for a wide one, else one sign."""


def cells(frame: Frame, grid: Grid, mode: str) -> list[Cell]:
    """What to draw in every cell, in order."""
    owners, whole = kinds(frame, grid)
    refs = _reduced(frame.ref, frame, grid, "max").tolist()
    fills = _reduced(frame.fill, frame, grid, "mean").tolist()
    value, how = {
        "accesses": (frame.freq, "max"),
        "level": (frame.level, "max"),
        "weight": (frame.weight, "max"),
    }.get(mode, (frame.age, "min"))
    values = _reduced(value if len(value) else np.zeros_like(frame.ref), frame, grid, how).tolist()
    size = frame.block_size
    made: dict[tuple[int, bool, int, int, int], Cell] = {}
    found = []
    for key in zip(owners.tolist(), whole.tolist(), refs, fills, values, strict=True):
        cell = made.get(key)
        if cell is None:
            cell = made[key] = _cell(*key, size, mode, grid)
        found.append(cell)
    return found


def _cell(owner: int, whole: bool, ref: int, fill: int, value: int, size: int, mode: str, grid: Grid) -> Cell:
    """One cell; `value` is what the mode is about where that is not the holder, references or filled tokens."""
    wide = grid.cell > 1
    if owner < 0 and not (owner == UNTOLD and mode != "owner"):
        glyph, style = {
            FREE: (look.GLYPH_FREE, look.FAINT),
            CACHED: (look.GLYPH_CACHED, look.CACHED_STYLE),
            NULL: (look.GLYPH_NULL, look.FAINT),
            UNTOLD: (look.GLYPH_UNTOLD, look.UNTOLD_STYLE),
        }[owner]
        if owner == CACHED and mode in _OF_CONTENT:
            return _figure(*_valued(mode, value), wide)
        return ((glyph * 3 if wide and owner in (CACHED, UNTOLD) else f"{glyph}  " if wide else glyph, style),)
    if mode == "references":
        return _figure(_short(ref), look.ramp(1.0 if ref > 8 else (ref.bit_length() * 2 - 1) / 7), wide)
    if mode == "filled":
        style = look.ramp(0.9 if fill >= size else 0.5 * fill / size)
        return ((f"{fill:^3}" if wide else look.level(fill, size) if fill < size else "█", style),)
    if mode in _OF_CONTENT:
        return _figure(*_valued(mode, value), wide)
    full = fill >= size
    chip = look.owner_chip(owner) if full or wide else look.owner_shade(owner)
    letter = look.owner_letter(owner)
    if wide:
        tank = (look.level(fill, size), look.owner_shade(owner))
        return (letter + (_short(ref) if ref > 1 else " "), chip), tank
    if grid.blocks > 1:
        chip = look.owner_chip(owner) if whole else look.owner_shade(owner)
        return ((_short(ref) if ref > 1 else letter if whole else letter.lower(), chip),)
    return ((_short(ref) if ref > 1 else letter if full else letter.lower(), chip),)


def _short(ref: int) -> str:
    return "+" if ref > 9 else str(ref)


def _figure(figure: str, style: Style, wide: bool) -> Cell:
    return ((f" {figure} " if wide else figure, style),)


def _valued(mode: str, value: int) -> tuple[str, Style]:
    """A figure and its colour. Ages and accesses by their logarithm: 0 none, 1 one, 2 up to 3, 3 up to 7 …; levels and
    weights as they are."""
    if mode == "level":
        return str(value), look.ramp(value / 4)
    if mode == "weight":
        return _short(value), look.ramp(min(value, 10) / 10)
    figure = min(9, int(value).bit_length())
    return str(figure), look.ramp(1 - figure / 9 if mode == "age" else figure / 9)


def legend(mode: str, grid: Grid, width: int, most: int = 1, stream: bool = False) -> list[Text]:
    """What the signs mean, as much of it as fits in `most` lines; what is least clear by itself comes first."""
    wide, many = grid.cell > 1, grid.blocks > 1
    chip, shade = look.owner_chip(0), look.owner_shade(0)
    items: list[tuple[str | tuple[str, Style], ...]] = []
    if many:
        items.append(
            (
                ("1 sign", look.BOLD),
                f" = {grid.blocks} blocks",
            )
        )
    if mode == "owner" and stream:
        pass  # nobody is known to hold anything
    elif mode == "owner" and wide:
        items += [(("A ", chip), ("▄", shade), " holder, how full"), (("A2", chip), " 2 hold it")]
    elif mode == "owner":
        items += [
            (("A", chip), " holder"),
            (("a", shade), " also others" if many else " not full"),
            (("2", chip), " most holders" if many else " 2 hold it"),
        ]
    elif mode == "references":
        what = " copies of its hash" if stream else " holders"
        items += [(("1", look.ramp(1 / 7)), ("2", look.ramp(3 / 7)), ("4", look.ramp(5 / 7)), f"{what}, + over 9")]
    elif mode == "filled":
        items += [
            (
                (" 9 " if wide else "▄", look.ramp(0.3)),
                " tokens" if wide else " part",
                (" 16" if wide else "█", look.ramp(0.9)),
                " full",
            )
        ]
    else:
        items += [
            tuple(
                part
                for value, words in (_STREAM_AGES if stream and mode == "age" else _EXAMPLES[mode])
                for figure, style in [_valued(mode, value)]
                for part in ((figure, style), words)
            )
        ]
    if stream and mode == "owner":
        items.append((((look.GLYPH_UNTOLD * (3 if wide else 1)), look.UNTOLD_STYLE), " cached, holders unknown"))
    elif not stream:
        items.append(
            (((look.GLYPH_CACHED * (3 if wide else 1)), look.CACHED_STYLE), " cached" if many else " cached, no holder")
        )
    items.append(((look.GLYPH_FREE, look.FAINT), " number not in use" if stream else " free"))
    items.append((("A", _TOUCHED), " last event"))
    lines = [look.line()]
    for item in items:
        part = look.line(*item)
        if lines[-1].cell_len + part.cell_len + 2 > width:
            if len(lines) == most:
                continue  # a shorter one may still fit
            lines.append(look.line())
        if lines[-1].cell_len:
            lines[-1].append("  ")
        lines[-1].append_text(part)
    return lines


_AGES = ((1, " one ago "), (7, " ≤7 "), (63, " ≤63 "), (256, " ≥256"))
_STREAM_AGES = ((0, " stored in this batch "), *_AGES)
_EXAMPLES = {
    "age": ((0, " used this step "), *_AGES),
    "accesses": ((0, " no access "), (1, " one "), (7, " ≤7 "), (63, " ≤63 "), (256, " ≥256, by selections, decayed")),
    "level": ((0, " not protected "), (2, " level 2 "), (4, " best protected")),
    "weight": ((0, " light "), (2, " pinned from here "), (4, " shared and more")),
}


class BlockMap(Panel):
    """The block map with its legend and a sentence about the chosen block."""

    NAME = "blocks"
    TITLE = "blocks"
    grid: Grid | None = None

    def title(self, view: View) -> str:
        frame = view.frame
        zoom = ", zoomed" if view.zoomed else ""
        if frame.stream is not None:
            mode = {"owner": "state", "references": "copies", "filled": "tokens"}.get(view.mode, view.mode)
            return f"1 cached blocks · by {mode}{zoom} · numbers are ours: the stream tells no ids"
        return f"1 blocks · by {view.mode}{zoom} · {frame.num_blocks:,} blocks of {frame.block_size} tokens"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        frame = view.frame
        below = 4 if height >= _ROOMY else 2  # lines of the legend, and of the sentence about a block
        grid = self.grid = grid_for(frame.num_blocks, width, height - below, view.zoomed, view.cursor)
        below = min(4, height - grid.rows)
        drawn = cells(frame, grid, view.mode)
        marked = dict.fromkeys(((frame.touched - grid.first) // grid.blocks).tolist(), _TOUCHED)
        if view.cursor >= 0:
            place = (view.cursor - grid.first) // grid.blocks
            marked[place] = _CURSOR
        found = []
        for row in range(grid.rows):
            start = row * grid.per_row
            text = Text(no_wrap=True, end="")
            text.append(f"{grid.first + start * grid.blocks:>{_LABEL - 1}} ", look.DIM)
            _append_cells(text, drawn[start : start + grid.per_row], start, grid, marked)
            found.append(text)
        explained = legend(view.mode, grid, width, max(1, below - 2), frame.stream is not None)
        room = below - len(explained)
        if view.cursor >= 0:
            told, style = frame.describe_block(view.cursor), look.BOLD
        elif len(frame.touched):
            told, style = f"last event: {frame.describe_block(int(frame.touched[0]))}", look.DIM
        else:
            told, style = "choose a block with the arrow keys or the mouse; c changes the colours", look.DIM
        sentence = [look.line((piece, style)) for piece in look.wrap(told, width)[:room]]
        found += [look.line()] * (height - len(found) - len(explained) - len(sentence))
        return [*found, *explained, *sentence]

    def on_click(self, event: ui.Click) -> None:
        """Choose the block under the mouse."""
        place = event.get_content_offset(self)
        if self.view is not None and self.grid is not None and place is not None:
            block = self.grid.block_at(place.x, place.y)
            if 0 <= block < self.view.frame.num_blocks:
                self.post_message(BlockChosen(block))


def _append_cells(text: Text, row: list[Cell], start: int, grid: Grid, marked: dict[int, Style]) -> None:
    """Append the cells of a row, neighbours of one style in one piece."""
    group, space = _group(grid.cell), " " * (grid.cell > 1)
    piece, piece_style = "", look.PLAIN
    for index, cell in enumerate(row):
        mark = marked.get(start + index)
        if index and index % group == 0:
            text.append(piece, piece_style)
            text.append(" ")
            piece = ""
        for glyph, style in cell:
            drawn = style if mark is None else mark
            if drawn is not piece_style and piece:
                text.append(piece, piece_style)
                piece = ""
            piece, piece_style = piece + glyph, drawn
        if space:
            text.append(piece, piece_style)
            text.append(space)
            piece = ""
    text.append(piece, piece_style)
