"""The frame of a recorded KV-event stream: the same picture with fewer things in it, because fewer things are told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.analysis.frame import FREE, UNTOLD, ChainRow, Frame, Memory, Said, StreamFacts, Table
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.stream import StreamState
from tinyserve_viz.recording.header import Header


def build_stream_frame(
    header: Header,
    state: StreamState,
    position: int,
    num_events: int,
    complete: bool,
    recent: Sequence[tuple[int, ev.Event]],
    said: Sequence[Said],
    touched: NDArray[np.int32],
    block: int,
) -> Frame:
    """As `framing.build_frame`. `ref` are the copies of a block's content, `content` is −1: hashes are in `stream`."""
    cached = state.place >= 0
    free = state.num_blocks - state.num_cached_free
    return Frame(
        header=header,
        position=position,
        num_events=num_events,
        complete=complete,
        step=recent[-1][0] if recent else 0,
        time_us=state.time_us,
        owner=np.where(cached, UNTOLD, FREE).astype(np.int32),
        ref=_copies(state, cached),
        fill=np.where(cached, state.fill, 0).astype(np.int32),
        age=(state.step - state.last_use).astype(np.int32),
        content=np.full(state.num_blocks, -1, dtype=np.int32),
        gen=state.gen.copy(),
        last_use=state.last_use.copy(),
        touched=touched,
        looked_at=block,
        held_as=(),
        sequences=(),
        num_waiting=0,
        chosen=-1,
        chosen_line="KV-event stream: requests unknown",
        table=Table(ev.EMPTY, ev.EMPTY, ev.EMPTY, ev.EMPTY_U8, state.block_size, 0, 0, None),
        memory=Memory(0, state.num_cached_free, free, None, None, None, 0, 0, int(state.fill[cached].sum())),
        kernels=(),
        kernel_title="",
        host_us=0.0,
        kernel_step=-1,
        selection=None,
        said=tuple(said),
        stream=_facts(header, state, block),
    )


def _copies(state: StreamState, cached: NDArray[np.bool_]) -> NDArray[np.int32]:
    """How many cached blocks of its place have the content of each; 0 where nothing is cached."""
    copies = np.zeros(state.num_blocks, dtype=np.int32)
    blocks = np.flatnonzero(cached)
    keys = np.stack([state.place[blocks].astype(np.int64), state.content[blocks]], axis=1)
    if len(blocks):
        _, which, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
        copies[blocks] = counts[which.ravel()]
    return copies


def _facts(header: Header, state: StreamState, block: int) -> StreamFacts:
    stream = header.stream or {}
    counts = np.bincount(state.place[state.place >= 0], minlength=len(stream["places"])).tolist()
    return StreamFacts(
        sequence=state.sequence,
        batches=state.step,
        stored=state.num_stored,
        removed=state.num_removed,
        cleared=state.num_cleared,
        unmatched=state.num_unmatched,
        gaps=state.num_gaps,
        missing=state.num_missing,
        unknown=state.num_unknown,
        pool_given=stream["given"],
        places=tuple(
            (f"{medium} group {group}", number)
            for (medium, group), number in zip(stream["places"], counts, strict=True)
        ),
        hashes=state.content.copy(),
        depths=state.depth.copy(),
        chain=_chain(state, block),
    )


def _chain(state: StreamState, block: int) -> tuple[ChainRow, ...]:
    """The prefix that ends in `block`, its first block first, as far as it is in the cache."""
    if block < 0 or state.place[block] < 0:
        return ()
    here = np.flatnonzero(state.place == state.place[block])
    here = here[np.lexsort((state.inserted[here], state.content[here]))]  # the oldest copy first among equals
    contents = state.content[here]
    rows, seen = [], set()
    while block not in seen:
        seen.add(block)
        copies = np.searchsorted(contents, state.content[block], "right") - np.searchsorted(
            contents, state.content[block]
        )
        rows.append(
            ChainRow(int(state.depth[block]), block, int(state.content[block]), int(copies), int(state.last_use[block]))
        )
        if not state.has_parent[block]:
            break
        at = int(np.searchsorted(contents, state.parent[block]))
        if at == len(contents) or contents[at] != state.parent[block]:
            break
        block = int(here[at])
    return tuple(reversed(rows))
