"""A recording's requests as a Mooncake trace again: what was imported comes back row for row.

A row's ids stand for 512 tokens each. Where the trace had ids of other sizes they are joined or split; where a prompt's
content is not known it gets ids of its own, which nothing shares.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import msgspec

from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.recording.header import Header
from tinyserve_viz.recording.prefix_ids import PrefixIds, decode_prefix_ids

HASH_BLOCK = 512  # tokens an id; trace.mooncake reads the same


def mooncake_rows(header: Header) -> Iterator[bytes]:
    """One JSON line a request.

    Raises:
        ConfigError: the trace's ids neither divide nor fill 512 tokens.
    """
    w = header.workload
    known = PrefixIds(HASH_BLOCK, (None,) * w.num_requests)
    if header.prefix_ids is not None:
        known = decode_prefix_ids(header.prefix_ids)
    hash_block = known.hash_block
    if HASH_BLOCK % hash_block and hash_block % HASH_BLOCK:
        raise ConfigError(
            f"the trace's ids stand for {hash_block} tokens each, expected a divisor or a multiple of {HASH_BLOCK}"
        )
    as_they_are = known.of_request if hash_block == HASH_BLOCK else ()
    fresh = _Numbers(1 + max((number for ids in as_they_are if ids for number in ids), default=-1))
    for request in range(w.num_requests):
        prompt = int(w.prompt_len[request])
        arrival_ms = int(w.arrival_us[request]) / 1000
        row = {
            "timestamp": int(arrival_ms) if arrival_ms.is_integer() else arrival_ms,
            "input_length": prompt,
            "output_length": int(w.output_len[request]),
            "hash_ids": _joined(prompt, known.of_request[request] or [], hash_block, fresh, request),
        }
        yield msgspec.json.encode(row) + b"\n"


def _joined(prompt: int, ids: list[int], hash_block: int, fresh: _Numbers, request: int) -> list[int]:
    """Ids of 512 tokens from those of `hash_block`: an id stands for its tokens and all before them."""
    found = []
    for place in range(-(-prompt // HASH_BLOCK)):
        end = min(prompt, (place + 1) * HASH_BLOCK)
        last = -(-end // hash_block) - 1  # the id that holds the last token of these
        if last >= len(ids):
            found.append(fresh.of(("own", request, place)))
        elif hash_block == HASH_BLOCK:
            found.append(ids[last])
        else:
            within = end - last * hash_block  # where in that id these tokens end
            found.append(fresh.of((ids[last], within)))
    return found


class _Numbers:
    """A number for every new key, from `first` on."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._of: dict[Hashable, int] = {}

    def of(self, key: Hashable) -> int:
        return self._of.setdefault(key, self._first + len(self._of))


def left_out(header: Header) -> dict[str, int]:
    """How many requests have something that the format cannot say."""
    w = header.workload
    found = {
        "samples": int((w.num_samples > 1).sum()),
        "forks": int((w.parent >= 0).sum()),
        "cancellations": int((w.cancel_at_us >= 0).sum()),
        "priorities": int((w.priority != 0).sum()),
    }
    return {name: count for name, count in found.items() if count}
