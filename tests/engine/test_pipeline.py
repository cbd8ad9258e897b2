"""The kernels inside a replay: what they choose, what it costs, and that the choice can be trusted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tinyserve_viz.analysis.metrics import Metrics
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.config import ContentConfig, ModelConfig
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.engine.content import Content
from tinyserve_viz.engine.pipeline import KernelPipeline, PipelineConfig
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.kernels.defs.content_generation import mix, noise
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.kernels.session import HostSession
from tinyserve_viz.trace import read_trace
from tinyserve_viz.trace.request import Request, Trace

QUICKSTART = data_folder("traces") / "quickstart.json"


def engine_on(settings: Settings, trace: Trace, backend: Any = None) -> tuple[Engine, list[ev.Event]]:
    """An engine with its kernels, and the list into which its events go."""
    header = prepare(trace, settings)
    events: list[ev.Event] = []
    engine = Engine(header.workload, header.engine, header.rules, lambda _step, event: events.append(event))
    session = HostSession(backend or NumpyBackend())
    engine.kernels = KernelPipeline(
        engine.state, header.engine, header.model, header.content, session, PipelineConfig()
    )
    return engine, events


def two_requests(**model: int) -> Trace:
    hashes = np.array([7, 8], dtype=np.int64)
    return Trace(
        name="two",
        format="json",
        hash_block=8,
        model={"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, **model},
        engine={"block_size": 8, "num_blocks": 64},
        requests=(
            Request(id="a", arrival_us=0, prompt_len=70, output_len=6, prefix_hash_ids=hashes),
            Request(id="b", arrival_us=60_000, prompt_len=45, output_len=9, prefix_hash_ids=hashes, n=2),
        ),
    )


class Spy(NumpyBackend):
    """A backend that keeps the arguments and results of chosen kernels."""

    def __init__(self, *names: str) -> None:
        self.names, self.calls = names, []

    def run(self, kernel: Any, arrays: Any, scalars: Any) -> Any:
        outputs = super().run(kernel, arrays, scalars)
        if kernel.name in self.names:
            kept = {name: array.copy() for name, array in {**arrays, **outputs}.items()}
            self.calls.append((kernel.name, kept, scalars))
        return outputs


def test_the_quickstart_runs_every_part_of_the_pipeline_within_200_steps() -> None:
    header = prepare(read_trace(QUICKSTART), Settings())
    seen: dict[str, int] = {}
    moved = 0

    def count(_step: int, event: ev.Event) -> None:
        nonlocal moved
        seen[type(event).__name__] = seen.get(type(event).__name__, 0) + 1
        if isinstance(event, ev.CompactionPlanned):
            moved += len(event.src)

    summary = run_replay(header, check_every_step=True, extra_sinks=(count,))
    assert summary["steps"] <= 200
    assert summary["invariants"]["violations"] == 0
    assert moved > 0
    assert {"BlocksSelected", "BlocksCopied", "SequencePreempted", "BlocksEvicted", "LevelsAdapted"} <= set(seen)
    assert summary["prefix"]["hit_tokens"] > 0
    assert summary["blocks"]["compaction_moves"] == moved
    assert {kernel["name"] for kernel in summary["kernels"]} >= {
        "block_allocation",
        "block_deallocation",
        "block_fork",
        "fused_block_copy",
        "fused_reshape_and_block_write",
        "block_scoring",
        "query_analysis",
        "cache_selection",
        "dynamic_workload_balancing",
        "paged_attention",
        "flash_paged_attention",
        "query_aware_paged_attention",
        "adaptive_cache_management",
        "intelligent_memory_compaction",
        "memory_compaction",
    }
    assert all(kernel["provenance"] == "reference" and kernel["gb_per_s"] is None for kernel in summary["kernels"])
    assert 0 < summary["selection"]["retained_mass"]["mean"] <= 1


def test_two_replays_give_one_digest_whatever_attention_form_ran() -> None:
    trace = read_trace(QUICKSTART)
    digests = {
        run_replay(prepare(trace, settings))["digest"]
        for settings in (Settings(), Settings(attention="flash"), Settings(kernels="decisions"))
    }
    assert len(digests) == 1


@pytest.mark.parametrize("kind", ["topics", "iid"])
def test_retained_mass_is_the_attention_summed_over_the_chosen_tokens(kind: str) -> None:
    spy = Spy("query_aware_paged_attention", "flash_paged_attention")
    engine, events = engine_on(Settings(content={"kind": kind}), two_requests(), spy)
    while engine.step():
        pass
    selections = [event for event in events if isinstance(event, ev.BlocksSelected)]
    chosen = [arrays for name, arrays, _ in spy.calls if name == "query_aware_paged_attention" and "box" not in arrays]
    assert len(chosen) == len(selections) > 10
    for event, arrays in zip(selections, chosen, strict=True):
        query, keys, table = arrays["query"].astype(np.float64), arrays["key_cache"], arrays["block_table"]
        bs, kv_heads = keys.shape[1:3]
        found = []
        for row in np.flatnonzero(arrays["seq_lens"]):
            length = int(arrays["seq_lens"][row])
            dense = (
                keys[table[row, : -(-length // bs)]].reshape(-1, kv_heads, keys.shape[3])[:length].astype(np.float64)
            )
            for head in range(query.shape[1]):
                kv = head // (query.shape[1] // kv_heads)
                logits = dense[:, kv] @ query[row, head] / np.sqrt(keys.shape[3])
                share = np.exp(logits - logits.max())
                kept = arrays["selected"][row, kv, : arrays["count"][row, kv]]
                found.append(share[np.isin(np.arange(length) // bs, kept)].sum() / share.sum())
        np.testing.assert_allclose(np.sort(event.retained), np.sort(np.array(found)), atol=1e-3)


def test_the_box_score_is_never_below_the_largest_logit_of_its_block() -> None:
    spy = Spy("block_scoring", "flash_paged_attention")
    engine, _ = engine_on(Settings(), two_requests(), spy)
    while engine.step():
        pass
    scored = [arrays for name, arrays, _ in spy.calls if name == "block_scoring"]
    attended = [arrays for name, arrays, _ in spy.calls if name == "flash_paged_attention"]
    assert len(scored) == len(attended) > 10
    for scores, cache in zip(scored, attended, strict=True):
        query, keys = scores["query"].astype(np.float64), cache["key_cache"].astype(np.float64)
        bs, kv_heads = keys.shape[1:3]
        group = query.shape[1] // kv_heads
        for row in np.flatnonzero(cache["seq_lens"]):
            for logical in range(-(-int(cache["seq_lens"][row]) // bs)):
                valid = min(bs, int(cache["seq_lens"][row]) - logical * bs)
                block = keys[cache["block_table"][row, logical], :valid]
                for kv in range(kv_heads):
                    largest = (block[:, kv] @ query[row, kv * group : (kv + 1) * group].T).max()
                    assert scores["block_score"][row, kv, logical] >= largest - 1e-4


def test_the_cache_holds_exactly_the_declared_content_when_a_sequence_ends() -> None:
    engine, _ = engine_on(Settings(), two_requests())
    kernels = engine.kernels
    assert kernels is not None
    checked = 0
    while engine.step():
        state = engine.state
        for seq in np.flatnonzero(state.slot >= 0).tolist():
            length = int(state.ctx[seq])
            for layer in range(2):
                blocks = state.table(seq)
                kv = kernels.content.keys_and_values(seq, 0, length, layer)
                for part, name in enumerate(("key_cache", "value_cache")):
                    (cache,) = kernels.session.read(kernels.memory.held[name])
                    held = cache[layer, blocks].reshape(-1, *kv.shape[2:])[:length]
                    assert np.array_equal(held, kv[:, part])
                    checked += 1
    assert checked > 20
    assert kernels.violations == []


def test_a_wrong_kernel_result_is_reported_as_a_violation() -> None:
    class Lying(NumpyBackend):
        def run(self, kernel: Any, arrays: Any, scalars: Any) -> Any:
            outputs = super().run(kernel, arrays, scalars)
            if kernel.name == "fused_reshape_and_block_write":
                arrays["box"][...] = 0  # boxes that contain nothing
            return outputs

    engine, _ = engine_on(Settings(), two_requests(), Lying())
    while engine.step():
        pass
    assert engine.kernels is not None
    assert {violation.invariant for violation in engine.kernels.violations} >= {"I6"}


def test_a_backend_that_loses_a_reference_is_found_the_same_step() -> None:
    class Forgetful(NumpyBackend):
        def run(self, kernel: Any, arrays: Any, scalars: Any) -> Any:
            outputs = super().run(kernel, arrays, scalars)
            if kernel.name == "block_fork":
                arrays["ref"][arrays["block_table"][arrays["forks"][0, 1], 0]] -= 1
            return outputs

    engine, _ = engine_on(Settings(), two_requests(), Forgetful())
    while engine.step():
        pass
    assert engine.kernels is not None
    assert any("ref of the backend" in violation.message for violation in engine.kernels.violations)


def test_selection_seed_and_paper_differ_and_both_keep_the_last_block() -> None:
    for policy in ("paper", "seed"):
        engine, events = engine_on(Settings(engine={"selection": policy}), two_requests())
        metrics = Metrics(engine.workload, engine.config)
        lengths: list[int] = []
        while engine.step():
            pass
        for event in events:
            metrics.add(0, event)
            if isinstance(event, ev.BlocksSelected):
                lists = np.split(event.selected, np.cumsum(event.counts)[:-1])
                assert all(len(kept) and (np.diff(kept) > 0).all() and kept[0] == 0 for kept in lists)
                lengths.append(len(event.selected))
        section = metrics.selection()
        assert section is not None
        assert section["policy"] == policy
        assert 0 < section["read_share"] <= 1


def test_equal_prefixes_have_equal_content_and_different_tokens_do_not() -> None:
    trace = two_requests()
    header = prepare(trace, Settings())
    content = Content(header.content, header.model, header.workload, header.engine.block_size)
    a, b, sibling = 0, 1, 2
    shared = 16  # two hashed blocks of 8
    assert np.array_equal(content.keys_and_values(a, 0, shared, 1), content.keys_and_values(b, 0, shared, 1))
    assert not np.array_equal(content.keys_and_values(a, 16, 24, 1), content.keys_and_values(b, 16, 24, 1))
    assert np.array_equal(content.keys_and_values(b, 0, 45, 0), content.keys_and_values(sibling, 0, 45, 0))
    assert not np.array_equal(content.keys_and_values(b, 45, 47, 0), content.keys_and_values(sibling, 45, 47, 0))
    assert not np.array_equal(content.keys_and_values(a, 0, 8, 0), content.keys_and_values(a, 0, 8, 1))
    first, rest = content.keys_and_values(a, 0, 30, 0), content.keys_and_values(a, 30, 70, 0)
    assert np.array_equal(np.concatenate([first, rest]), content.keys_and_values(a, 0, 70, 0))


def test_the_noise_is_bell_shaped_with_unit_variance_and_depends_on_every_part() -> None:
    draws = noise(mix(1, 2, np.arange(200_000)))
    assert abs(float(draws.mean())) < 0.01
    assert abs(float(draws.std()) - 1) < 0.01
    assert abs(float((draws**4).mean()) - 2.7) < 0.1  # four uniform parts: kurtosis 3 − 1.2/4
    assert len({int(mix(*parts)[0]) for parts in ((1, 2), (2, 1), (1, 2, 0), (1, 3))}) == 4


def test_the_content_has_the_bits_it_had_when_this_was_written() -> None:
    header = prepare(two_requests(), Settings())
    content = Content(header.content, header.model, header.workload, header.engine.block_size)
    kv = content.keys_and_values(0, 0, 8, 0).view(np.uint16)
    assert int(kv.astype(np.uint64).sum()) == CONTENT_BITS


CONTENT_BITS = 32_314_679  # a change of it changes every digest of a replay with kernels


def test_topics_make_a_block_say_something_and_iid_does_not() -> None:
    trace = two_requests()
    shares = {}
    for kind in ("topics", "iid"):
        engine, events = engine_on(Settings(content={"kind": kind}), replace(trace, content={}))
        while engine.step():
            pass
        retained = np.concatenate([event.retained for event in events if isinstance(event, ev.BlocksSelected)])
        shares[kind] = float(retained.mean())
    assert shares["topics"] > shares["iid"] + 0.1


def test_unknown_content_and_selection_are_refused_in_one_line() -> None:
    header = prepare(two_requests(), Settings())
    with pytest.raises(ConfigError, match=r"^content 'npz' cannot be generated; known: iid, topics$"):
        Content(ContentConfig(kind="npz", path="x.npz"), ModelConfig(), header.workload, 16)
    with pytest.raises(ConfigError, match=r"^unknown selection 'best'; known: oracle, paper, random, recency, seed"):
        engine_on(Settings(engine={"selection": "best"}), two_requests())
    with pytest.raises(ConfigError, match=r"need the paged allocator"):
        prepare(two_requests(), Settings(engine={"allocator": "exact"}, kernels="all"))
