"""The profile `vllm` against what vLLM 0.33.0's own scheduler and KV-cache manager decided, step by step.

The oracle (its decisions on real traces, written by its released Python) is no part of this repository: the folder is
named by TINYSERVE_ORACLE, that of the traces by TINYSERVE_TRACES. Each run must agree in *all* of: the digest of the
decision lines, the digest of the evictions, hits, preemptions, steps. Totals alone would not notice most broken rules.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyserve_viz.analysis.decisions import DecisionLines, EvictionRows
from tinyserve_viz.cli.session import Settings, prepare
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.check import StepChecker, check
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.core.rules import CHOICES, PROFILES, RULES_IN_WORDS
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.trace import read_trace
from tinyserve_viz.trace.request import Request, Trace

FILES = {"mooncake_conversation": "mooncake_conversation.jsonl", "sharegpt": "sharegpt_llama3.1-8b_rows001-200.jsonl"}
ORACLE_RUNS = [
    f"{trace}/{arrivals}/{size}"
    for trace in ("mooncake_conversation", "sharegpt_llama3.1-8b")
    for arrivals in ("sequential", "burst", "timed")
    for size in ("enough", "60%", "25%")
]


@pytest.fixture(scope="session")
def oracle() -> Path:
    folder = os.environ.get("TINYSERVE_ORACLE")
    if not folder:
        pytest.skip("TINYSERVE_ORACLE is unset: it names the folder with vLLM's decisions")
    return Path(folder)


class Observed:
    """Everything of one run that the oracle tells too."""

    def __init__(self, trace: Trace, settings: Settings, full_check: bool = False) -> None:
        header = prepare(trace, settings)
        self._sha = hashlib.sha256()
        self.lines: list[bytes] = []
        lines = DecisionLines(header.workload, header.engine.block_size, self._line)
        self.evictions = EvictionRows(header.workload)
        self.first_hits = self.again_hits = self.lookups = self.hit_blocks = self.preemptions = self.lost = 0
        self.peak = self.allocated = 0

        def sink(step: int, event: ev.Event) -> None:
            lines.add(step, event)
            self.evictions.add(step, event)
            checker.add(step, event)
            self._count(event, header.engine.block_size)
            if full_check and isinstance(event, ev.StepEnded):
                assert check(engine.state) == []

        self.header = header
        engine = Engine(header.workload, header.engine, header.rules, sink, header.origin["arrivals"] == "sequential")
        checker = StepChecker(engine.state, cached_when_scheduled=header.rules.cache_at == "scheduled")
        self._again = engine.state.num_preemptions
        while engine.step():
            pass
        checker.check_now()
        assert checker.violations == []
        self.state = engine.state
        self.decisions_sha256 = self._sha.hexdigest()
        rows = [list(row) for row in self.evictions.rows]
        self.evictions_sha256 = hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    def _line(self, line: bytes) -> None:
        self._sha.update(line)
        self.lines.append(line)

    def _count(self, event: ev.Event, block_size: int) -> None:
        if isinstance(event, ev.SequenceAdmitted):
            self.lookups += 1
            self.hit_blocks += len(event.hits)
            if self._again[event.seq]:
                self.again_hits += len(event.hits) * block_size
            else:
                self.first_hits += len(event.hits) * block_size
        elif isinstance(event, ev.SequencePreempted):
            self.preemptions += 1
            self.lost += event.lost_tokens
        elif isinstance(event, ev.BlocksAllocated):
            self.allocated += len(event.blocks)
        elif isinstance(event, ev.StepEnded):
            self.peak = max(self.peak, event.peak_blocks)


def vllm(num_blocks: int, arrivals: str = "burst", seqs: int = 256, tokens: int = 8192, **rules: Any) -> Settings:
    engine = {"num_blocks": num_blocks, "max_num_seqs": seqs, "max_batch_tokens": tokens, "block_size": 16}
    return Settings(engine=engine, profile="vllm", rules=rules, arrivals=arrivals, kernels="none")


def real(folder: Path, run: str, limit: int) -> Trace:
    return read_trace(folder / next(name for key, name in FILES.items() if run.startswith(key)), limit=limit)


@pytest.mark.parametrize("run", ORACLE_RUNS)
def test_every_decision_is_the_one_that_vllm_took(run: str, oracle: Path, real_traces: Path) -> None:
    expected = json.loads((oracle / "vllm_kv.json").read_text())["runs"][run]
    seen = Observed(
        real(real_traces, run, expected["requests"]),
        vllm(
            expected["num_gpu_blocks"],
            expected["arrivals"],
            expected["max_num_seqs"],
            expected["max_num_batched_tokens"],
        ),
    )
    stats = expected["prefix_cache_stats"]
    distinct = len(np.unique(seen.state.hash[seen.state.hash >= 0]))
    assert {
        "decisions": seen.decisions_sha256,
        "evictions": seen.evictions_sha256,
        "evicted": len(seen.evictions.rows),
        "first evictions": [list(row) for row in seen.evictions.rows[:50]],
        "steps": seen.state.step,
        "preemptions": seen.preemptions,
        "lost tokens": seen.lost,
        "lookups": seen.lookups,
        "hit blocks": seen.hit_blocks,
        "first hits": seen.first_hits,
        "hits after preemption": seen.again_hits,
        "allocated": seen.allocated,
        "peak": seen.peak,
        "cached at the end": int((seen.state.hash >= 0).sum()),
        "distinct hashes": distinct,
    } == {
        "decisions": expected["decisions_sha256"],
        "evictions": expected["evictions_sha256"],
        "evicted": expected["evicted_blocks"],
        "first evictions": expected["first_evictions_step_block_owner_index"],
        "steps": expected["steps"],
        "preemptions": expected["preemptions"],
        "lost tokens": expected["preempted_computed_tokens"],
        "lookups": expected["lookups"],
        "hit blocks": expected["hit_blocks"],
        "first hits": stats["hits"],
        "hits after preemption": stats["preempted_hits"],
        "allocated": expected["blocks_allocated"],
        "peak": expected["peak_used_blocks"],
        "cached at the end": expected["cached_blocks_at_end"],
        "distinct hashes": expected["distinct_hashes_at_end"],
    }


def test_the_small_run_agrees_line_by_line(oracle: Path, real_traces: Path) -> None:
    seen = Observed(real(real_traces, "sharegpt", 24), vllm(600, "burst", 8, 2048))
    assert seen.lines == (oracle / "small.decisions.jsonl").read_bytes().splitlines(keepends=True)


# Two requests with the same first 16 tokens, in blocks of 16 of which block 0 is the null block. Worked by hand: step 0
# admits both; r0 takes blocks 1 and 2, block 1 is cached as it is scheduled, so r1 hits it and takes 3.
HAND = Trace(
    name="by-hand",
    format="json",
    hash_block=16,
    requests=(
        Request(id="r0", arrival_us=0, prompt_len=20, output_len=14, prefix_hash_ids=np.array([5], dtype=np.int64)),
        Request(id="r1", arrival_us=0, prompt_len=18, output_len=3, prefix_hash_ids=np.array([5], dtype=np.int64)),
    ),
)


def test_two_requests_by_hand() -> None:
    seen = Observed(HAND, vllm(6), full_check=True)
    lines = [json.loads(line) for line in seen.lines]
    assert lines[0] == {
        "step": 0,
        "run": [[0, "new", 0, 20, [1, 2]], [1, "new", 16, 2, [1, 3]]],
        "preempted": [],
        "finished": [],
        "free": 2,
    }
    assert lines[1]["run"] == [[0, "run", 20, 1, []], [1, "run", 18, 1, []]]
    # r1 has its third output when its second decode step is over; block 3 has no hash and goes to the front.
    assert lines[2] == {
        "step": 2,
        "run": [[0, "run", 21, 1, []], [1, "run", 19, 1, []]],
        "preempted": [],
        "finished": [1],
        "free": 3,
    }
    # Token 33 of r0 (32 are stored after step 12) starts a block: the one that r1 left at the front.
    assert lines[13] == {
        "step": 13,
        "run": [[0, "run", 32, 1, [3]]],
        "preempted": [],
        "finished": [0],
        "free": 5,
    }
    assert len(lines) == 14


def broken_rules() -> Iterator[tuple[str, Any]]:
    """Every rule of the profile with another value than vLLM's."""
    for name in RULES_IN_WORDS:
        value = getattr(PROFILES["vllm"], name)
        if isinstance(value, bool):
            yield name, not value
        else:
            yield from ((name, other) for other in CHOICES[name] if other != value)


@pytest.mark.parametrize(("rule", "value"), list(broken_rules()))
def test_breaking_any_one_rule_changes_a_decision(rule: str, value: Any) -> None:
    good = Observed(pressure(), under_pressure())
    bad = Observed(pressure(), under_pressure(**{rule: value}))
    assert good.decisions_sha256 != bad.decisions_sha256, f"{rule}={value} changed nothing"
    assert bad.state.num_used == bad.state.null_blocks  # a broken rule is another server, not a leaking one


# On traces without samples two of the rules cannot be told from their neighbours: arrival and admission order are one,
# and a prefill under way is the last admitted. So for those the other value is taken.
IN_THE_ORACLE = {
    "null_block": (False, "sharegpt_llama3.1-8b/burst/60%"),
    "cache_outputs": (False, "sharegpt_llama3.1-8b/burst/60%"),
    "cache_at": ("written", "mooncake_conversation/burst/60%"),
    "store_last_token": (True, "sharegpt_llama3.1-8b/burst/60%"),
    "duplicate_hashes": (False, "sharegpt_llama3.1-8b/burst/60%"),
    "free_order": ("classes", "sharegpt_llama3.1-8b/burst/60%"),
    "free_from": ("head", "sharegpt_llama3.1-8b/burst/60%"),
    "running_order": ("prefill_first", "mooncake_conversation/burst/60%"),
    "victim": ("least_computed", "sharegpt_llama3.1-8b/burst/60%"),
    "admit_after_preemption": (True, "sharegpt_llama3.1-8b/burst/60%"),
    "admit_by": ("chunk", "mooncake_conversation/burst/60%"),
    "allocate": ("once_per_step", "sharegpt_llama3.1-8b/burst/60%"),
    "watermark": (True, "sharegpt_llama3.1-8b/burst/60%"),
}


@pytest.mark.parametrize("rule", RULES_IN_WORDS)
def test_breaking_any_one_rule_leaves_a_run_of_the_oracle(rule: str, oracle: Path, real_traces: Path) -> None:
    value, run = IN_THE_ORACLE[rule]
    expected = json.loads((oracle / "vllm_kv.json").read_text())["runs"][run]
    settings = vllm(
        expected["num_gpu_blocks"],
        expected["arrivals"],
        expected["max_num_seqs"],
        expected["max_num_batched_tokens"],
        **{rule: value},
    )
    seen = Observed(real(real_traces, run, expected["requests"]), settings)
    assert seen.decisions_sha256 != expected["decisions_sha256"]


def test_of_equal_blocks_that_one_step_writes_the_first_is_found() -> None:
    seen = Observed(HAND, vllm(6, cache_at="written"), full_check=True)
    lines = [json.loads(line) for line in seen.lines]
    assert lines[0]["run"] == [[0, "new", 0, 20, [1, 2]], [1, "new", 0, 18, [3, 4]]]
    assert seen.state.num_duplicates == 1
    assert seen.state.block_of_hash[seen.state.hash[3]] == 1


def under_pressure(**rules: Any) -> Settings:
    settings = vllm(30, "burst", 8, 24, **rules)
    settings.engine["watermark_permille"] = 200
    return settings


def pressure() -> Trace:
    """Thirty requests with shared prefixes, whole-block prompts, samples, and outputs that overflow 29 blocks of 16."""
    rng = np.random.default_rng(0)
    requests = []
    for i in range(30):
        shared, own = int(rng.integers(0, 5)), int(rng.integers(0, 4))
        ids = np.concatenate([np.arange(shared), 100 * (i + 1) + np.arange(own)]).astype(np.int64)
        ids = ids if len(ids) else np.array([0], dtype=np.int64)
        prompt = max(1, 16 * len(ids) - int(rng.choice([0, 0, 0, 5, 11])))
        requests.append(
            Request(
                id=f"r{i}",
                arrival_us=0,
                prompt_len=prompt,
                output_len=int(rng.integers(1, 150)),
                prefix_hash_ids=ids[: -(-prompt // 16)],
                n=int(rng.choice([1, 1, 1, 2, 3])),
            )
        )
    return Trace(name="pressure", format="json", hash_block=16, requests=tuple(requests))


def test_contradicting_options_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^free_order queue evicts by its own order, eviction 'fifo' cannot be had"):
        prepare(HAND, Settings(profile="vllm", engine={"eviction": "fifo"}))
    with pytest.raises(ConfigError, match=r"^unknown rule 'colour'; known: "):
        prepare(HAND, Settings(profile="vllm", rules={"colour": True}))
    with pytest.raises(ConfigError, match=r"^unknown profile 'sglang'; known: tinyserve, vllm$"):
        prepare(HAND, Settings(profile="sglang"))


def test_every_option_is_explained() -> None:
    assert set(RULES_IN_WORDS) == set(type(PROFILES["vllm"]).__dataclass_fields__)
