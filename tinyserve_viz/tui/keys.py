"""The keys: one list from which the application, its help and its palette are made."""

from __future__ import annotations

from textual.binding import Binding

GROUPS: tuple[tuple[str, tuple[Binding, ...]], ...] = (
    (
        "position",
        (
            Binding("space", "play", "play or pause"),
            Binding("n,full_stop,right_square_bracket", "event(1)", "one event forward"),
            Binding("p,comma,left_square_bracket", "event(-1)", "one event back"),
            Binding("N", "step(1)", "to the next step"),
            Binding("P", "step(-1)", "to the beginning of this or the previous step"),
            Binding("g,home", "first", "to the beginning"),
            Binding("G,end", "last", "to the end"),
            Binding("plus,equals_sign", "speed(1)", "play faster"),
            Binding("minus", "speed(-1)", "play slower"),
            Binding("colon", "go_to", "go to: 57 a step, e412 an event, t1.5 a simulated second"),
            Binding("b", "breaks", "set breakpoints, at which playing stops"),
            Binding("B", "run_on(1)", "on to the next event that meets a breakpoint"),
            Binding("R", "run_on(-1)", "back to the last event that meets a breakpoint"),
            Binding("slash", "find", "find a request by its name and show its block table"),
        ),
    ),
    (
        "blocks and sequences",
        (
            Binding("left,h", "move(-1, 0)", "block to the left"),
            Binding("right,l", "move(1, 0)", "block to the right"),
            Binding("up,k", "move(0, -1)", "up: block, sequence or logical block, by panel"),
            Binding("down,j", "move(0, 1)", "down: block, sequence or logical block, by panel"),
            Binding("w", "sequence(1)", "next sequence"),
            Binding("W", "sequence(-1)", "previous sequence"),
            Binding("enter", "inspect", "inspect the chosen block: its holders and what happened to it"),
            Binding("escape", "release", "choose nothing, show all panels"),
            Binding("c", "colours", "map by owner, references, filled tokens, age, accesses or level"),
            Binding("z", "zoom", "zoom the map: one block a place, or the whole pool"),
        ),
    ),
    (
        "panels",
        (
            Binding("tab", "panel(0)", "next panel", priority=True),
            Binding("1", "panel(1)", "blocks; the same figure again gives a panel the whole screen"),
            Binding("2", "panel(2)", "why"),
            Binding("3", "panel(3)", "sequences"),
            Binding("4", "panel(4)", "block table"),
            Binding("5", "panel(5)", "memory"),
            Binding("6", "panel(6)", "kernels"),
            Binding("7", "panel(7)", "history"),
            Binding("8", "panel(8)", "selection: why which blocks are read, and what that keeps"),
            Binding("9", "panel(9)", "balance: who attends over how much"),
            Binding("0", "panel(10)", "upkeep: protection levels, hot region, compaction"),
            Binding("L", "layer", "next layer, where there are several"),
            Binding("s", "save", "screenshot (SVG) into the working directory"),
            Binding("e", "export", "export a table, the events or a plot of the whole recording into a file"),
            Binding("v", "plot", "view a plot of the whole recording"),
            Binding("ctrl+p", "command_palette", "palette of all commands"),
            Binding("question_mark,f1", "help", "this help"),
            Binding("q,ctrl+c", "quit", "quit"),
        ),
    ),
)

BINDINGS = [binding for _, bindings in GROUPS for binding in bindings]

_SIGNS = {
    "full_stop": ".", "comma": ",", "right_square_bracket": "]", "left_square_bracket": "[", "plus": "+",
    "equals_sign": "=", "minus": "-", "colon": ":", "slash": "/", "question_mark": "?",
}  # fmt: skip

READING = (
    "Block map: the letter is the sequence that holds a block (same letter and colour in the list of",
    "sequences). With one place a block a lower-case letter is a block that is not full, a figure a block",
    "that so many sequences share. ░ holds no reference but stays in the prefix index; · is free.",
    "Underlined: what the last event touched. The mouse chooses blocks, sequences and places in time.",
    "Timeline: P preempt  X reject  K compact  F fork  C copy-on-write  E evict  ● where you are.",
    "Kernels: GB/s and its share of a copy where a GPU was measured; ~ is too short for the clock.",
    "Event 383/686: 383 of 686 events have happened, the 383rd is the one explained under why.",
)


def signs(binding: Binding) -> str:
    """The keys of a binding as they stand on a keyboard."""
    return " ".join(_SIGNS.get(key, key) for key in binding.key.split(","))


def help_lines() -> list[str]:
    """Every key with what it does, then how to read the screen."""
    found = []
    for name, bindings in GROUPS:
        found.append(name)
        found += [f"  {signs(binding):<10} {binding.description}" for binding in bindings]
        found.append("")
    return [*found, "reading the screen", *(f"  {text}" for text in READING)]
