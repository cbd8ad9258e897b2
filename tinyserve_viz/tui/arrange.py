"""Where the panels stand on a screen of a given size."""

from __future__ import annotations

from tinyserve_viz.tui.block_map import grid_for

MIN_WIDTH, MIN_HEIGHT = 60, 16
Rect = tuple[int, int, int, int]  # x, y, width, height

_VERY_WIDE = 170  # room for kernels, history and memory side by side
_VERY_HIGH = 50  # room for the selection under the block table
SIDE_PANELS = ("sequences", "table", "memory", "kernels", "history", "selection", "balance", "upkeep")
_TALL = ("selection", "balance", "upkeep")  # take the place of kernels and history, and more lines


def arrange(
    width: int,
    height: int,
    num_blocks: int,
    active: str,
    zoomed: bool = False,
    kernels_ran: bool = True,
    enlarged: bool = False,
) -> dict[str, Rect]:
    """Rectangles of the panels that are shown; empty where the screen is too small.

    Where no kernels ran their place goes to the history, until it is asked for. `enlarged` gives the active panel all
    the room.
    """
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return {}
    if enlarged:
        lines = 1 if height < 30 else 2
        return {
            "header": (0, 0, width, lines),
            active: (0, lines, width, height - 1 - 2 * lines),
            "timeline": (0, height - 1 - lines, width, lines),
            "footer": (0, height - 1, width, 1),
        }
    if width < 110 or height < 30:
        return _narrow(width, height, num_blocks, active, zoomed)
    return _wide(width, height, num_blocks, active, zoomed, kernels_ran)


def _map_height(num_blocks: int, width: int, most: int, zoomed: bool, below: int) -> int:
    """Lines of the map's panel: its rows, `below` for legend and sentence, and border, at most `most`."""
    if zoomed:
        return most
    return min(most, grid_for(num_blocks, width - 2, most - 2 - below).rows + 2 + below)


def _narrow(width: int, height: int, num_blocks: int, active: str, zoomed: bool) -> dict[str, Rect]:
    """Header, map, why, one chosen panel, timeline, footer, from top to bottom."""
    panel = active if active in SIDE_PANELS else "sequences"
    rest = height - 3
    map_height = _map_height(num_blocks, width, max(6, rest * 2 // 5), zoomed, 2)
    rest -= map_height
    top = 1 + map_height
    lines: dict[str, Rect] = {
        "header": (0, 0, width, 1),
        "blocks": (0, 1, width, map_height),
        "timeline": (0, height - 2, width, 1),
        "footer": (0, height - 1, width, 1),
    }
    if rest < 9:  # no room for two: the reasons, until a panel is asked for
        return {**lines, (panel if active in SIDE_PANELS else "why"): (0, top, width, rest)}
    why_height = max(4, min(6, rest * 2 // 5))
    rest -= why_height
    return {**lines, "why": (0, top, width, why_height), panel: (0, top + why_height, width, rest)}


def _wide(width: int, height: int, num_blocks: int, active: str, zoomed: bool, kernels_ran: bool) -> dict[str, Rect]:
    """The map and the reasons at the left, sequences and block table at the right, kernels and memory below; the
    largest screens show the selection at the right too."""
    left = width * 55 // 100
    right = width - left
    body = height - 5  # header 2, timeline 2, footer 1
    selecting = kernels_ran and width >= _VERY_WIDE and height >= _VERY_HIGH
    below = _row_below(width, active, kernels_ran, selecting)
    bottom = max(9, min(14, body * 3 // 10))
    if below[0][0] in _TALL:
        bottom = max(bottom, min(20, body * 45 // 100))
    upper = body - bottom
    map_height = _map_height(num_blocks, left, upper - 7, zoomed, 4)
    if selecting:
        column = (("sequences", upper * 22 // 100), ("table", upper * 38 // 100), ("selection", upper))
    else:
        column = (("sequences", max(6, upper * 2 // 5)), ("table", upper), ("", 0))
    places: dict[str, Rect] = {
        "header": (0, 0, width, 2),
        "blocks": (0, 2, left, map_height),
        "why": (0, 2 + map_height, left, upper - map_height),
        "timeline": (0, height - 3, width, 2),
        "footer": (0, height - 1, width, 1),
    }
    y = 2
    for name, lines in column:
        if name:
            places[name] = (left, y, right, min(lines, 2 + upper - y))
            y += lines
    x = 0
    for place, (name, share) in enumerate(below):
        columns = width - x if place == len(below) - 1 else width * share // 100
        places[name] = (x, 2 + upper, columns, bottom)
        x += columns
    return places


def _row_below(width: int, active: str, kernels_ran: bool, selecting: bool) -> tuple[tuple[str, int], ...]:
    """Panels from left to right, each with its share of the width in per cent; the last takes what is left."""
    swapped = active in _TALL and not (active == "selection" and selecting)
    if width >= _VERY_WIDE:
        if swapped:
            return ((active, 50), ("kernels", 30), ("memory", 20))
        if kernels_ran:
            return (("kernels", 42), ("history", 30), ("memory", 28))
    if swapped:
        return ((active, 64), ("memory", 36))
    history = active == "history" or not (kernels_ran or active == "kernels")
    return (("history" if history else "kernels", 60), ("memory", 40))
