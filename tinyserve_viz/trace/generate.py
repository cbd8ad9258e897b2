"""Seeded synthetic traces: each kind puts one kind of stress on the KV cache. Same arguments, same trace.

Only `Generator.random` of NumPy's PCG64 is drawn from, so that the bytes do not depend on how a NumPy release turns
random bits into other distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import numpy as np

from tinyserve_viz.core.config import MAX_LENGTH
from tinyserve_viz.trace.request import Request, Trace

LONG_CONTEXT = 131_072  # tokens; the context length that kernels are tested at


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a generated trace is: `rate` in requests per second, mean lengths in tokens, blocks of the pool."""

    requests: int
    rate: float
    prompt_len: int
    output_len: int
    block_size: int = 16
    num_blocks: int = 1024
    max_num_seqs: int = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of trace: what it shows, its usual shape, and the function that draws its requests."""

    summary: str
    shape: Shape
    make: Callable[[Draw, Shape], list[Request]]
    hash_block: int = 0  # tokens of one prefix hash id; 0: one block


class Draw:
    """Random numbers of one trace, all made from uniform ones in [0, 1)."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.Generator(np.random.PCG64(seed)).random

    def below(self, limit: int) -> int:
        """A whole number in 0..limit-1."""
        return int(self._random() * limit)

    def between(self, low: int, high: int) -> int:
        """A whole number in low..high."""
        return low + self.below(high - low + 1)

    def micros(self, mean_s: float) -> int:
        """An exponential time in µs, at least 1."""
        return max(1, round(-mean_s * 1e6 * math.log1p(-self._random())))

    def length(self, mean: int) -> int:
        """Tokens: a quarter of the mean, and the rest exponential up to eight times the mean."""
        tail = -0.75 * mean * math.log1p(-self._random())
        return max(1, min(round(mean / 4 + tail), 8 * mean, MAX_LENGTH))


def generate(kind: str, seed: int, shape: Shape) -> Trace:
    """The trace of `kind` (a key of KINDS); requests are named r0, r1, … unless the kind has names of its own."""
    requests = KINDS[kind].make(Draw(seed), shape)
    has_ids = any(request.prefix_hash_ids is not None for request in requests)
    engine = {"block_size": shape.block_size, "num_blocks": shape.num_blocks, "max_num_seqs": shape.max_num_seqs}
    hash_block = (KINDS[kind].hash_block or shape.block_size) if has_ids else 0
    return Trace(kind, "json", tuple(requests), seed, hash_block, engine, content={"kind": "topics", "seed": seed})


def poisson(draw: Draw, shape: Shape) -> list[Request]:
    """Independent requests at exponential intervals."""
    requests = []
    now = 0
    for index in range(shape.requests):
        requests.append(_plain(draw, shape, index, now))
        now += draw.micros(1 / shape.rate)
    return requests


def bursty(draw: Draw, shape: Shape) -> list[Request]:
    """Requests in bursts a few ms apart, with pauses that keep the mean rate."""
    requests: list[Request] = []
    now = 0
    while len(requests) < shape.requests:
        size = min(draw.between(8, 40), shape.requests - len(requests))
        for _ in range(size):
            requests.append(_plain(draw, shape, len(requests), now))
            now += draw.micros(0.002)
        now += draw.micros(size / shape.rate)
    return requests


def samples(draw: Draw, shape: Shape) -> list[Request]:
    """Requests of which most ask for 2 to 8 samples of one prompt."""
    return [replace(request, n=(1, 2, 3, 4, 8)[draw.below(5)]) for request in poisson(draw, shape)]


def prefix(draw: Draw, shape: Shape) -> list[Request]:
    """Conversations of several turns that start with one of four system prompts and repeat all that was said before."""
    block = shape.block_size
    systems = [draw.length(2 * shape.prompt_len) for _ in range(4)]
    turns: list[tuple[int, int, int, int, int, int]] = []  # arrival, conversation, turn, prompt, output, system
    start = 0
    conversation = 0
    while len(turns) < 2 * shape.requests:  # conversations overlap: twice as many as needed, then the first ones
        system = draw.below(len(systems))
        now, context = start, systems[system]
        for turn in range(draw.between(1, 6)):
            context = min(context + draw.length(shape.prompt_len), MAX_LENGTH)
            output = draw.length(shape.output_len)
            turns.append((now, conversation, turn, context, output, system))
            context += output
            now += output * 25_000 + draw.micros(4.0)  # a decode step takes about 25 ms, reading 4 s
        start += draw.micros(3 / shape.rate)
        conversation += 1

    numbers: dict[Hashable, int] = {}
    requests = []
    for index, (arrival, which, _, prompt, output, system) in enumerate(sorted(turns)[: shape.requests]):
        shared = systems[system] // block
        keys: list[Hashable] = [("system", system, place) for place in range(min(shared, prompt // block))]
        keys += [(which, place) for place in range(shared, prompt // block)]
        requests.append(Request(f"r{index}", arrival, prompt, output, _numbered(keys, numbers)))
    return _from_zero(requests)


def forks(draw: Draw, shape: Shape) -> list[Request]:
    """Trees: a child goes on from some token of its parent's prompt or output; some roots are sampled n times."""
    requests: list[Request] = []
    start = 0
    while len(requests) < 2 * shape.requests:
        name = f"t{len(requests)}"
        root = Request(name, start, draw.length(shape.prompt_len), draw.length(shape.output_len), n=draw.between(1, 4))
        tree = [(root, 0)]
        for parent, depth in tree:  # grows while it is walked
            if depth < 3:
                tree += [(_child(draw, shape, parent, number), depth + 1) for number in range(draw.below(4 - depth))]
        requests += [request for request, _ in tree]
        start += draw.micros(4 / shape.rate)
    requests.sort(key=lambda request: request.arrival_us)  # a child arrives after its parent
    return _from_zero(requests[: shape.requests])


def long(draw: Draw, shape: Shape) -> list[Request]:
    """Contexts that end at exactly 131,072 tokens, two in three about one document, among short requests."""
    block = LONG_HASH_BLOCK
    numbers: dict[Hashable, int] = {}
    requests = []
    now = 0
    for index in range(shape.requests):
        if index % 3 == 2:
            requests.append(_plain(draw, shape, index, now))
        else:
            output = min(draw.length(shape.output_len), LONG_CONTEXT // 2)
            prompt = LONG_CONTEXT - output
            common = 64 + draw.below(32) if index else 0
            keys: list[Hashable] = [("document", place) for place in range(common if index else prompt // block)]
            keys += [(index, place) for place in range(len(keys), prompt // block)]
            requests.append(Request(f"r{index}", now, prompt, output, _numbered(keys, numbers)))
        now += draw.micros(1 / shape.rate)
    return requests


def fragmentation(draw: Draw, shape: Shape) -> list[Request]:
    """Waves in which every other request lives long, each wave a little too large for the holes the last one left."""
    requests: list[Request] = []
    now = 0
    while len(requests) < shape.requests:
        wave = len(requests) // 16
        blocks = 2 + wave % 5
        for place in range(min(16, shape.requests - len(requests))):
            long_lived = (place + wave) % 2
            output = draw.between(12, 16) * shape.output_len if long_lived else draw.between(1, shape.output_len)
            prompt = min(blocks * shape.prompt_len + draw.below(shape.prompt_len), MAX_LENGTH)
            requests.append(Request(f"r{len(requests)}", now + place, prompt, min(output, MAX_LENGTH)))
        now += round(16e6 / shape.rate)
    return requests


def _plain(draw: Draw, shape: Shape, index: int, arrival: int) -> Request:
    return Request(f"r{index}", arrival, draw.length(shape.prompt_len), draw.length(shape.output_len))


def _child(draw: Draw, shape: Shape, parent: Request, number: int) -> Request:
    fork_at = draw.between(1, min(parent.prompt_len + parent.output_len, MAX_LENGTH))
    prompt = min(fork_at + draw.below(shape.prompt_len), MAX_LENGTH)
    arrival = parent.arrival_us + draw.micros(0.2)
    return Request(
        f"{parent.id}.{number}", arrival, prompt, draw.length(shape.output_len), parent=parent.id, fork_at=fork_at
    )


def _numbered(keys: list[Hashable], numbers: dict[Hashable, int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Prefix hash ids: a number for every key, the next free one for a new key."""
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _from_zero(requests: list[Request]) -> list[Request]:
    first = requests[0].arrival_us
    return [replace(request, arrival_us=request.arrival_us - first) for request in requests]


LONG_HASH_BLOCK = 1024  # keeps the ids of 131,072 tokens to 128 numbers

KINDS: dict[str, Kind] = {
    "poisson": Kind("independent requests, exponential intervals", Shape(200, 8.0, 256, 64), poisson),
    "bursty": Kind("bursts and pauses", Shape(200, 8.0, 256, 64), bursty),
    "prefix": Kind("shared system prompts and conversations", Shape(120, 4.0, 96, 48, num_blocks=320), prefix),
    "samples": Kind("several samples of one prompt", Shape(60, 4.0, 128, 48), samples),
    "forks": Kind("trees of requests that go on from one another", Shape(60, 4.0, 128, 48, num_blocks=160), forks),
    "long": Kind(
        "contexts of 131,072 tokens",
        Shape(6, 0.5, 512, 48, num_blocks=24_576, max_num_seqs=8),
        long,
        hash_block=LONG_HASH_BLOCK,
    ),
    "fragmentation": Kind(
        "lifetimes that shatter the free list", Shape(160, 16.0, 16, 24, num_blocks=640), fragmentation
    ),
}
