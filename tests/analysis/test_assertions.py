"""The grammar of assertions: what it can say, what it refuses, and that a failure shows the values."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyserve_viz.analysis.assertions import AssertionSyntax, judge

VALUES: dict[str, Any] = {
    "steps": 146,
    "prefix.hit_tokens": 208,
    "prefix.token_hit_rate": 0.176,
    "requests.rejected": 0,
    "trace.name": "quickstart",
    "fragmentation.internal": None,
    "complete": True,
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("steps == 146", True),
        ("steps != 146", False),
        ("prefix.token_hit_rate >= 0.2", False),
        ("0 < prefix.token_hit_rate < 1", True),
        ("0 < prefix.token_hit_rate < 0.1 < 1", False),
        ("requests.rejected == 0 and steps > 200", False),
        ("requests.rejected == 0 or steps > 200", True),
        ("not requests.rejected", False),  # a number is no truth value
        ("not (steps > 200)", True),
        ("steps - 2 * 3 + -4 == 136", True),
        ("prefix.hit_tokens / steps > 1.4", True),
        ("abs(-3) == 3 and max(1, steps) == min(146, 147)", True),
        ("trace.name == 'quickstart'", True),
        ("trace.name > 'a'", True),
        ("trace.name == 3", False),
        ("fragmentation.internal == null", True),
        ("complete == true", True),
        ("complete", True),
        ("steps / requests.rejected > 1", False),
        ("fragmentation.internal < 1", False),
    ],
)
def test_an_assertion_holds_or_not(text: str, holds: bool) -> None:
    assert judge(text, VALUES).passed is holds


def test_a_verdict_has_the_values_that_it_names_also_those_not_looked_at() -> None:
    verdict = judge("steps > 200 and prefix.hit_tokens > 1", VALUES)
    assert verdict.values == {"steps": 146, "prefix.hit_tokens": 208}
    assert verdict.why == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("fragmentation.internal < 1", "fragmentation.internal is null: there was nothing to measure"),
        ("steps / requests.rejected > 1", "requests.rejected is 0, and was divided by"),
        ("trace.name < 3", "trace.name is 'quickstart' and 3 is 3: they have no order"),
        ("trace.name + 1 > 0", "trace.name is 'quickstart', expected a number"),
        ("steps and complete", "steps is 146, expected true or false"),
        ("1e308 * 1000 / 0 > 1", "0 is 0, and was divided by"),
    ],
)
def test_what_cannot_be_decided_fails_and_says_why(text: str, why: str) -> None:
    verdict = judge(text, VALUES)
    assert (verdict.passed, verdict.why) == (False, why)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz > 1", "unknown name 'stepz'; near: steps"),
        ("prefix > 1", "'prefix' is a section, expected one of its values: prefix.hit_tokens, prefix.token_hit_rate"),
        ("steps > 1 or nothing_like_it", "unknown name 'nothing_like_it'"),
        ("steps", "is a value, expected a comparison such as steps > 0"),
        ("steps = 1", "cannot be read: "),
        ("", "cannot be read: "),
        ("steps > 1\x00", "cannot be read: "),
        ("steps ** 9 > 1", "'steps ** 9' is not allowed"),
        ("steps % 2 == 0", "'steps % 2' is not allowed"),
        ("__import__('os').system('true')", "is not allowed"),
        ("(lambda: 1)() == 1", "is not allowed"),
        ("[steps][0] == 1", "is not allowed"),
        ("steps in (1, 2)", "is not allowed"),
        ("f'{steps}' == '1'", "is not allowed"),
        ("abs(steps, 1) == 1", "abs takes one value"),
        ("max(steps) == 1", "min and max two or more"),
        ("max(steps, key=abs) == 1", "is not allowed"),
        ("(1 < 2).__class__ == 1", "is no name"),
        ("steps > " + "1" * 1000, "assertion of 1,008 characters, expected at most 1,000"),
        ("(" * 400 + "steps" + ")" * 400 + " > 1", "cannot be read: "),
    ],
)
def test_what_is_not_in_the_grammar_is_refused(text: str, message: str) -> None:
    with pytest.raises(AssertionSyntax) as caught:
        judge(text, VALUES)
    assert message in str(caught.value)


@given(st.text(alphabet="abs().,+-*/<>=!_'\"[]{}:;@%^&|~ 019stepxor\n\t", max_size=60))
def test_no_text_does_anything_but_hold_fail_or_be_refused(text: str) -> None:
    with contextlib.suppress(AssertionSyntax):
        assert isinstance(judge(text, VALUES).passed, bool)
