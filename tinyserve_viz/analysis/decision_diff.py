"""The first step at which two servers decided differently, in words.

One side is a replay of ours, the other a file of decision lines (`analysis.decisions` has their form), such as vLLM's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from tinyserve_viz.core.errors import TraceError


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """One step: who ran with which blocks, who was preempted, who finished, how many blocks are free after it."""

    step: int
    run: list[tuple[int, str, int, int, list[int]]]
    preempted: list[int]
    finished: list[int]
    free: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step that differs, and every way in which it does; each sentence names both sides."""

    step: int
    sentences: tuple[str, ...]


def read_lines(data: bytes, name: str) -> list[Line]:
    """Parse a file of decision lines.

    Raises:
        TraceError: a line is no decision line; the message has file and line.
    """
    decoder = msgspec.json.Decoder(Line)
    lines = []
    for number, text in enumerate(data.splitlines(), 1):
        try:
            lines.append(decoder.decode(text))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TraceError(f"{name}:{number}: no decision line: {error}") from None
    if not lines:
        raise TraceError(f"{name}: is empty, expected one JSON decision line a step")
    return lines


def first_difference(ours: list[Line], theirs: list[Line], them: str) -> Difference | None:
    """The first step at which `ours` and `theirs` are not the same, None when all are."""
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            return Difference(mine.step, tuple(_explain(mine, other, them)))
    if len(ours) != len(theirs):
        longer, steps = ("here", len(ours)) if len(ours) > len(theirs) else (them, len(theirs))
        shorter = min(len(ours), len(theirs))
        return Difference(
            shorter, (f"{shorter} steps are the same, then only the run {longer} goes on, to {steps} steps",)
        )
    return None


def _explain(mine: Line, other: Line, them: str) -> list[str]:
    sentences: list[str] = []
    if mine.step != other.step:
        sentences.append(f"the step is numbered {mine.step} here and {other.step} by {them}")
    here, there = ({entry[0]: entry for entry in line.run} for line in (mine, other))
    for request in [entry[0] for entry in mine.run] + [r for r in there if r not in here]:
        sentences += _explain_request(request, here.get(request), there.get(request), them)
    order_here, order_there = [e[0] for e in mine.run], [e[0] for e in other.run]
    if order_here != order_there and sorted(order_here) == sorted(order_there):
        sentences.append(f"the order of service is {order_here} here, {order_there} by {them}")
    for what, a, b in (("preempted", mine.preempted, other.preempted), ("finished", mine.finished, other.finished)):
        if a != b:
            sentences.append(f"{what}: {a or 'nobody'} here, {b or 'nobody'} by {them}")
    if mine.free != other.free:
        sentences.append(f"free blocks after the step: {mine.free} here, {other.free} by {them}")
    return sentences


def _explain_request(request: int, mine: Any, other: Any, them: str) -> list[str]:
    if mine is None or other is None:
        kind, before, tokens, blocks = (mine or other)[1:]
        side, absent = ("here", them) if other is None else (them, "here")
        what = f"{kind}, {tokens} tokens after {before}, {len(blocks)} blocks"
        return [f"request {request} runs {side} ({what}), not {absent}"]
    sentences = []
    names = ("is scheduled as", "has computed tokens before the step:", "gets tokens:")
    for name, a, b in zip(names, mine[1:4], other[1:4], strict=True):
        if a != b:
            sentences.append(f"request {request} {name} {a} here, {b} by {them}")
    if mine[4] != other[4]:
        sentences.append(f"request {request} gets {_blocks(mine[4], other[4], them)}")
    return sentences


def _blocks(mine: list[int], other: list[int], them: str) -> str:
    """Both lists from the first block at which they part, shortened."""
    at = next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), min(len(mine), len(other)))
    shown = [f"{blocks[at : at + 4]}{' …' if len(blocks) > at + 4 else ''}" for blocks in (mine, other)]
    same = f"the same first {at} blocks, then " if at else "blocks "
    return f"{same}{shown[0]} here ({len(mine)} in all), {shown[1]} by {them} ({len(other)} in all)"
