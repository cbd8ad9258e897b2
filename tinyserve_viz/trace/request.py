"""What a trace is once it has been read: requests in order of arrival, and the settings that the file proposes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request of a trace; times in µs from the start of the trace, lengths in tokens.

    Attributes:
        prefix_hash_ids: int64 [≤ ceil(prompt_len / hash_block)] or None; id i stands for the tokens
            [i·hash_block, (i+1)·hash_block) of the prompt *and all before them*. No id repeats inside a request.
        prompt_tokens: int32 [prompt_len] real token ids, or None.
        output_tokens: int32 [output_len] real token ids, or None.
        n: samples that share one prefill.
        parent, fork_at: this request shares the first `fork_at` tokens of the context of request `parent`.
    """

    id: str
    arrival_us: int
    prompt_len: int
    output_len: int
    prefix_hash_ids: NDArray[np.int64] | None = None
    prompt_tokens: NDArray[np.int32] | None = None
    output_tokens: NDArray[np.int32] | None = None
    n: int = 1
    parent: str | None = None
    fork_at: int | None = None
    cancel_at_us: int | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A whole trace. `engine`, `model` and `content` hold only what the file sets (our JSON), checked by its reader.

    `hash_block` is the number of tokens that one prefix hash id covers; 0 means the block size of the replay.
    """

    name: str
    format: str
    requests: tuple[Request, ...]
    seed: int = 0
    hash_block: int = 0
    engine: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
