"""Verdicts as JUnit XML, the form that CI servers show: https://github.com/testmoapp/junitxml."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr


@dataclass(frozen=True, slots=True)
class Case:
    """One check: its name, whether it passed, and what to say when it did not."""

    name: str
    passed: bool
    message: str = ""


def as_junit(suite: str, cases: list[Case], seconds: float) -> str:
    """A suite of cases; `seconds` is the time of the replay, which all of them share."""
    failures = sum(not case.passed for case in cases)
    name, counts = quoteattr(_printable(suite)), f'tests="{len(cases)}" failures="{failures}" errors="0"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites name="tinyserve-viz check" {counts} time="{seconds:.3f}">',
        f'  <testsuite name={name} {counts} skipped="0" time="{seconds:.3f}">',
    ]
    for case in cases:
        head = f"    <testcase classname={name} name={quoteattr(_printable(case.name))}"
        if case.passed:
            lines.append(f'{head} time="0"/>')
        else:
            first = quoteattr(_printable(case.message.splitlines()[0]))
            body = escape(_printable(case.message))
            lines += [f'{head} time="0">', f"      <failure message={first}>{body}</failure>", "    </testcase>"]
    return "\n".join([*lines, "  </testsuite>", "</testsuites>"]) + "\n"


def _printable(text: str) -> str:
    """XML 1.0 has no control characters."""
    return "".join(char if char in "\n\t" or (char >= " " and char not in "\ufffe\uffff") else "?" for char in text)
