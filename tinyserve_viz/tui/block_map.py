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

from tinyserve_viz.analysis.frame import CACHED, FREE, NULL, Frame
from tinyserve_viz.tui import look
from tinyserve_viz.tui.panel import BlockChosen, Panel, PanelChosen, View

MODES = ("owner", "references", "filled", "age")
_LABEL = 7  # places of the block id at the left of a row
_CURSOR = Style(reverse=True, bold=True)
_TOUCHED = Style(underline=True, bold=True)
_WIDE = 4


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
        return _LABEL + index * self.cell + (index // 16 if self.cell == 1 else index // 8)

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
    while -(-num_blocks // (narrow * blocks)) > height:
        blocks *= 2
    return Grid(narrow, -(-num_blocks // (narrow * blocks)), 1, blocks, 0)


def _largest(width: int, cell: int) -> int:
    """Cells in a row: a multiple of 16 (8 for wide cells and narrow screens)."""
    group = 8 if cell > 1 else 16
    room = width - _LABEL
    count = (room + 1) // (group * cell + 1) * group
    return count if count else 8 if cell == 1 and room >= 8 else 0


def kinds(frame: Frame, grid: Grid) -> NDArray[np.int32]:
    """The owner of every cell: of its block, or the most frequent one of its blocks."""
    end = min(frame.num_blocks, grid.first + grid.rows * grid.per_row * grid.blocks)
    owner = frame.owner[grid.first : end]
    if grid.blocks == 1:
        return owner
    cells = _runs(owner, grid.blocks, fill=-9)
    ordered = np.sort(cells, axis=1)
    # Length of the run of equal owners that ends at each place; the longest run's owner is the most frequent.
    places = np.arange(grid.blocks)
    new = np.ones_like(ordered, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = np.maximum.accumulate(np.where(new, places, 0), axis=1)
    lengths = np.where(ordered == -9, -1, places - starts)
    most: NDArray[np.int32] = ordered[np.arange(len(ordered)), lengths.argmax(axis=1)]
    return most


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


Cell = tuple[str, Style]


def cells(frame: Frame, grid: Grid, mode: str) -> list[Cell]:
    """Glyph and style of every cell in order; wide cells have `_WIDE` − 1 signs, others one."""
    owners = kinds(frame, grid).tolist()
    refs = _reduced(frame.ref, frame, grid, "max").tolist()
    fills = _reduced(frame.fill, frame, grid, "mean").tolist()
    ages = _reduced(frame.age, frame, grid, "min").tolist()
    size = frame.block_size
    made: dict[tuple[int, int, int, int], Cell] = {}
    found = []
    for key in zip(owners, refs, fills, ages, strict=True):
        cell = made.get(key)
        if cell is None:
            cell = made[key] = _cell(*key, size, mode, grid.cell > 1)
        found.append(cell)
    return found


def _cell(owner: int, ref: int, fill: int, age: int, size: int, mode: str, wide: bool) -> Cell:
    if owner < 0:
        glyph, style = {
            FREE: (look.GLYPH_FREE, look.FAINT),
            CACHED: (look.GLYPH_CACHED, look.CACHED_STYLE),
            NULL: (look.GLYPH_NULL, look.FAINT),
        }[owner]
        if owner == CACHED and mode == "age":
            glyph, style = _age(age)
        return (glyph + "  " if wide else glyph), style
    shared = "+" if ref > 9 else str(ref)
    if mode == "owner":
        letter, style = look.owner_letter(owner), look.owner_style(owner)
        if wide:
            return letter + look.level(fill, size) + (shared if ref > 1 else " "), style
        if ref > 1:
            return shared, Style.combine([style, look.BOLD])
        return (letter if fill >= size else letter.lower()), style
    if mode == "references":
        style = Style(color=look.REF_COLOURS[min(ref, len(look.REF_COLOURS) - 1)], bold=ref > 1)
        return (f"{shared}  " if wide else shared), style
    if mode == "filled":
        style = look.WARN if fill < size else look.GOOD
        return (f"{look.level(fill, size)}{fill:<2}" if wide else look.level(fill, size)), style
    glyph, style = _age(age)
    return (f"{glyph}  " if wide else glyph), style


def _age(age: int) -> Cell:
    """Steps since the last use as a figure that grows with their logarithm: 0 now, 1 one step, 2 up to 3, 3 up to 7."""
    figure = min(9, int(age).bit_length())
    return str(figure), Style(color=look.HEAT_COLOURS[min(figure, len(look.HEAT_COLOURS) - 1)])


def legend(mode: str, grid: Grid) -> list[str | Cell]:
    """What the glyphs mean, in one line."""
    rest: list[str | Cell] = [
        (look.GLYPH_CACHED, look.CACHED_STYLE),
        " cached, no holder  ",
        (look.GLYPH_FREE, look.FAINT),
        " free  ",
        ("touched", _TOUCHED),
        " by the last event",
    ]
    each = f"each sign = {grid.blocks} blocks  " if grid.blocks > 1 else ""
    if mode == "owner" and grid.cell > 1:
        return [
            ("A", look.owner_style(0)),
            " holder  ▁▄█ how full  ",
            ("2–9", look.BOLD),
            " holders, if shared  ",
            *rest,
        ]
    if mode == "owner":
        small = "" if grid.blocks > 1 else " (a: not full)"
        return [each, ("A", look.owner_style(0)), f" holder{small}  ", ("2–9", look.BOLD), " shared by n  ", *rest]
    if mode == "references":
        return [each, ("1–9", look.BOLD), " references, + more  ", *rest]
    if mode == "filled":
        return [each, ("▁▄█", look.GOOD), " tokens in the block  ", *rest]
    return [each, "0 used this step, 1 one step ago, 2 ≤3, 3 ≤7, 4 ≤15 … 9 ≥256 steps  ", *rest[2:]]


class BlockMap(Panel):
    """The block map with its legend and a sentence about the chosen block."""

    NAME = "blocks"
    TITLE = "blocks"
    grid: Grid | None = None

    def title(self, view: View) -> str:
        frame = view.frame
        zoom = ", zoomed" if view.zoomed else ""
        return f"1 blocks · by {view.mode}{zoom} · {frame.num_blocks:,} of {frame.block_size} tokens"

    def lines(self, view: View, width: int, height: int) -> list[Text]:
        frame = view.frame
        grid = self.grid = grid_for(frame.num_blocks, width, height - 2, view.zoomed, view.cursor)
        drawn = cells(frame, grid, view.mode)
        marked = dict.fromkeys(((frame.touched - grid.first) // grid.blocks).tolist(), _TOUCHED)
        if view.cursor >= 0:
            place = (view.cursor - grid.first) // grid.blocks
            marked[place] = Style.combine([marked.get(place, look.PLAIN), _CURSOR])
        found = []
        for row in range(grid.rows):
            start = row * grid.per_row
            text = Text(no_wrap=True, end="")
            text.append(f"{grid.first + start * grid.blocks:>{_LABEL - 1}} ", look.DIM)
            _append_cells(text, drawn[start : start + grid.per_row], start, grid, marked)
            found.append(text)
        found += [look.line()] * (height - 2 - len(found))
        found.append(look.line(*legend(view.mode, grid)))
        if view.cursor >= 0:
            found.append(look.line((frame.describe_block(view.cursor), look.BOLD)))
        else:
            found.append(look.line(("choose a block with the arrow keys or the mouse; c other colours", look.DIM)))
        return found

    def on_click(self, event: ui.Click) -> None:
        """Choose the block under the mouse."""
        place = event.get_content_offset(self)
        self.post_message(PanelChosen(self.NAME))
        if self.view is not None and self.grid is not None and place is not None:
            block = self.grid.block_at(place.x, place.y)
            if 0 <= block < self.view.frame.num_blocks:
                self.post_message(BlockChosen(block))


def _append_cells(text: Text, row: list[Cell], start: int, grid: Grid, marked: dict[int, Style]) -> None:
    """Append the cells of a row, neighbours of one style in one piece."""
    group = 8 if grid.cell > 1 else 16
    piece, piece_style = "", look.PLAIN
    for index, (glyph, style) in enumerate(row):
        gap = " " if index and index % group == 0 else ""
        mark = marked.get(start + index)
        if mark is None and style is piece_style and grid.cell == 1:
            piece += gap + glyph
            continue
        if piece:
            text.append(piece, piece_style)
            piece = ""
        if gap:
            text.append(gap)
        if mark is not None:
            text.append(glyph, Style.combine([style, mark]))
        elif grid.cell == 1:
            piece, piece_style = glyph, style
        else:
            text.append(glyph, style)
        if grid.cell > 1:
            text.append(" ")
    if piece:
        text.append(piece, piece_style)
