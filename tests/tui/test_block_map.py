"""The map: every cell says holder, fullness and sharing by a sign, in colour or without, at every size of pool."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tinyserve_viz.analysis.frame import CACHED, FREE, NULL, Frame
from tinyserve_viz.cli.main import main
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.tui import look
from tinyserve_viz.tui.block_map import MODES, Grid, cells, grid_for, kinds, legend
from tinyserve_viz.tui.player import Player


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Frame:
    path = tmp_path_factory.mktemp("map") / "run.rec"
    quickstart = str(data_folder("traces") / "quickstart.json")
    assert main(["replay", quickstart, "--kernels", "none", "--headless", "--record", str(path)]) == 0
    with Timeline(path) as timeline:
        return Player(timeline).frame(timeline.num_events // 2)


def picture(frame: Frame, owner: list[int], ref: list[int], fill: list[int], age: list[int] | None = None) -> Frame:
    arrays = {"owner": owner, "ref": ref, "fill": fill, "age": age or [0] * len(owner), "content": [-1] * len(owner)}
    return replace(frame, **{name: np.array(values, dtype=np.int32) for name, values in arrays.items()})


def signs(frame: Frame, grid: Grid, mode: str = "owner") -> list[str]:
    return ["".join(glyph for glyph, _ in cell) for cell in cells(frame, grid, mode)]


SMALL = Grid(per_row=8, rows=1, cell=1, blocks=1, first=0)
WIDE = Grid(per_row=8, rows=1, cell=4, blocks=1, first=0)


def test_a_small_cell_is_a_letter_small_where_the_block_is_not_full_and_a_figure_where_it_is_shared(
    frame: Frame,
) -> None:
    shown = picture(frame, [0, 1, 1, 2, 2, CACHED, FREE, NULL], [1, 1, 1, 3, 12, 0, 0, 1], [16, 16, 3, 16, 16, 0, 0, 0])
    assert signs(shown, SMALL) == ["A", "B", "b", "3", "+", "░", "·", "×"]


def test_a_wide_cell_shows_holder_number_of_holders_and_how_full_it_is(frame: Frame) -> None:
    shown = picture(frame, [0, 1, 27, CACHED, FREE], [1, 2, 1, 0, 0], [16, 8, 2, 0, 0])
    assert signs(shown, WIDE) == ["A █", "B2▄", "B ▁", "░░░", "·  "]


def test_the_other_colourings_show_figures(frame: Frame) -> None:
    shown = picture(frame, [0, 1, 2, CACHED], [1, 2, 30, 0], [16, 8, 4, 0], [0, 1, 100, 300])
    assert signs(shown, SMALL, "references") == ["1", "2", "+", "░"]
    assert signs(shown, SMALL, "age") == ["0", "1", "7", "9"]
    assert signs(shown, SMALL, "filled") == ["█", "▄", "▂", "░"]
    assert signs(shown, WIDE, "filled") == ["16 ", " 8 ", " 4 ", "░░░"]


def test_a_cell_of_many_blocks_names_the_one_who_has_most_of_them_in_capitals_if_all(frame: Frame) -> None:
    shown = picture(frame, [0, 0, 0, 0, 1, 1, 0, FREE, FREE, 2], [1] * 10, [16] * 10)
    grid = Grid(per_row=8, rows=1, cell=1, blocks=4, first=0)
    most, whole = kinds(shown, grid)
    assert most.tolist() == [0, 1, FREE]
    assert whole.tolist() == [True, False, False]
    assert signs(shown, grid) == ["A", "b", "·"]


@pytest.mark.parametrize("num_blocks", [1, 40, 256, 1000, 8192, 16_384, 1 << 20])
@pytest.mark.parametrize(("width", "height"), [(54, 5), (76, 9), (118, 30), (198, 50)])
def test_every_block_of_every_pool_has_a_place_that_fits_and_is_found_under_the_mouse(
    num_blocks: int, width: int, height: int
) -> None:
    grid = grid_for(num_blocks, width, height)
    assert grid.rows <= height
    assert grid.place(grid.per_row - 1) + max(1, grid.cell - 1) <= width
    assert grid.per_row * grid.rows * grid.blocks >= num_blocks
    for index in range(grid.per_row):
        assert grid.block_at(grid.place(index), 0) == index * grid.blocks
    assert grid.block_at(0, 0) == -1


def test_zoom_shows_the_page_of_the_cursor_one_block_a_place() -> None:
    grid = grid_for(16_384, 76, 9, zoomed=True, cursor=10_000)
    assert grid.blocks == 1
    assert grid.first <= 10_000 < grid.first + grid.per_row * grid.rows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grid", [SMALL, WIDE, Grid(8, 1, 1, 4, 0)])
@pytest.mark.parametrize("width", [54, 76, 118])
def test_the_legend_fits_in_its_line_and_explains_more_where_there_is_room(mode: str, grid: Grid, width: int) -> None:
    (text,) = legend(mode, grid, width)
    assert text.cell_len <= width
    assert (" free" in text.plain) or width < 118


def test_neighbours_in_the_list_of_colours_differ_in_brightness_or_hue_for_everyone() -> None:
    """Okabe and Ito's hues, and no two sequences of the first eight alike."""
    assert len(set(look.OWNER_COLOURS)) == len(look.OWNER_COLOURS) == 8
    assert look.owner_letter(0) != look.owner_letter(8)  # where the colour comes back the letter is another one


def test_the_ramp_grows_in_brightness_so_that_it_reads_without_hue() -> None:
    def luminance(colour: str) -> float:
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    values = [luminance(colour) for colour in look.RAMP]
    assert values == sorted(values)


def test_ascii_keeps_the_length_of_every_line() -> None:
    for text in (look.LEVELS, "░·×│─├┤●▸■□→…µ", "7–9 ≤ 3"):
        assert len(look.to_ascii(text)) == len(text)
        assert look.to_ascii(text).isascii()
