"""Words that a user types: for a place (a step, an event, a simulated time), for a request, for breakpoints."""

from __future__ import annotations

from bisect import bisect_left

from tinyserve_viz.analysis.breaks import KINDS, Break
from tinyserve_viz.analysis.history import History
from tinyserve_viz.core.workload import Workload
from tinyserve_viz.recording.timeline import Timeline

_SHORT = {"step": "", "event": "e", "time": "t"}


class NoSuchPlace(Exception):  # noqa: N818 - an answer for the footer, not an error of the program
    """What was typed names no place; the message says what would."""


def parse_place(text: str, timeline: Timeline, history: History) -> int:
    """The position that `57` (a step), `e412` (an event) or `t1.5` (seconds of simulated time) names.

    `step 57`, as breakpoints have it, `event 412` and `time 1.5` say the same.

    Raises:
        NoSuchPlace: it cannot be understood, or lies outside.
    """
    kind, _, number = text.partition(" ")
    short = f"{_SHORT[kind]}{number.strip()}" if kind in _SHORT else text
    try:
        if short.startswith("e"):
            return _inside(int(short[1:]), timeline.num_events, "event")
        if short.startswith("t"):
            wanted = float(short[1:]) * 1e6
            place = bisect_left(history.time_us, wanted)
            return history.ends[place] if place < len(history.ends) else timeline.num_events
        last = max(0, timeline.step_of(timeline.num_events) - 1)
        first = timeline.first_event_of_step(_inside(int(short), last, "step"))
        return min(first + 1, timeline.num_events)  # right after its first event, so that the step is the one shown
    except ValueError:
        raise NoSuchPlace(f"{text!r}: expected 57 (a step), e412 (an event) or t1.5 (seconds)") from None


def _inside(number: int, last: int, what: str) -> int:
    if not 0 <= number <= last:
        raise NoSuchPlace(f"there is no {what} {number:,}; they go from 0 to {last:,}")
    return number


def find_request(text: str, workload: Workload) -> tuple[int, str]:
    """The first sequence of the request that is called so, or whose name begins so, and what was found in words.

    Raises:
        NoSuchPlace: no request is called so.
    """
    names = workload.request_ids
    if not names:
        raise NoSuchPlace("no request is known: a KV-event stream names none")
    found = [i for i, name in enumerate(names) if name == text] or [
        i for i, name in enumerate(names) if name.startswith(text)
    ]
    if not found:
        raise NoSuchPlace(f"no request is called {text!r}; they go from {names[0]} to {names[-1]}")
    first = int(workload.first_seq[found[0]])
    more = f", first of {len(found)} that begin so" if len(found) > 1 else ""
    return first, f"block table of {workload.seq_name(first)}{more}"


BREAKS_HINT = "stop at: preempt evict copy compact reject fork · block 12 · seq r4 · step 57"


def parse_breaks(text: str, workload: Workload, num_blocks: int) -> tuple[Break, ...]:
    """The breakpoints that a line such as `evict block 12 seq r4` names.

    Raises:
        NoSuchPlace: it cannot be understood, or names a block or a request that is not there.
    """
    words = text.replace(",", " ").split()
    found: list[Break] = []
    while words:
        word = words.pop(0)
        if word in KINDS:
            found.append(Break(word))
        elif word not in ("block", "seq", "step"):
            raise NoSuchPlace(f"{word!r}: expected {', '.join(KINDS)}, block N, seq NAME or step N")
        elif not words:
            raise NoSuchPlace(f"{word}: expected {'a name' if word == 'seq' else 'a number'} after it")
        elif word == "seq":
            found.append(Break(word, _sequence(words.pop(0), workload)))
        else:
            number = words.pop(0)
            if not number.isdecimal() or (word == "block" and int(number) >= num_blocks):
                known = f" from 0 to {num_blocks - 1:,}" if word == "block" else ""
                raise NoSuchPlace(f"{word} {number}: expected a number{known}")
            found.append(Break(word, int(number)))
    return tuple(dict.fromkeys(found))


def _sequence(name: str, workload: Workload) -> int:
    """The sequence that is called `name`: a request, or one of its samples (`r4.2`)."""
    request, _, sample = name.rpartition(".")
    if sample.isdecimal() and request in workload.request_ids:
        place = workload.request_ids.index(request)
        if int(sample) < int(workload.num_samples[place]):
            return int(workload.first_seq[place]) + int(sample)
    return find_request(name, workload)[0]
