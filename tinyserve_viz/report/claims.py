"""Claims and answers as text: the claim, what is wrong with it, our numbers with their definitions, the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tinyserve_viz.analysis.claim import CLAIMED, MARKS, NOT_MEASURED, Answer

WIDTH = 118


def as_text(answers: Sequence[Answer], header: Sequence[str]) -> str:
    """All answers, a paragraph each, under a legend."""
    legend = "   ".join(f"{mark} {meaning}" for mark, meaning in MARKS.items())
    lines = [*header, legend]
    for answer in answers:
        lines += ["", *_paragraph(answer)]
    return "\n".join(lines)


def _paragraph(answer: Answer) -> list[str]:
    claim = answer.claim
    lines = _wrapped(f"{claim.name}   {CLAIMED} {claim.says}   [{claim.source}]", "", "    ")
    lines += _wrapped(f"open: {claim.wrong}", "  ", "    ")
    width = max((len(number.name) for number in answer.numbers), default=0)
    values = max((len(number.shown()) for number in answer.numbers), default=0)
    place = ""
    for number in answer.numbers:
        if number.on != place and number.mark != NOT_MEASURED:
            place = number.on
            lines += _wrapped(f"on {place}:" if place else "whatever the trace:", "  ", "    ")
        head = f"  {number.mark} {number.name:<{width}}  {number.shown():>{values}}  "
        lines += _wrapped(number.definition, head, " " * len(head))
    return [*lines, *_wrapped(f"→ {answer.verdict}", "  ", "    ")]


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, drop_whitespace=True
    )
