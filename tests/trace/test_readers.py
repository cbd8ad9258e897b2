"""Every format: what a small file of it becomes, and that it is recognised."""

from __future__ import annotations

import gzip
import math
import pkgutil
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyserve_viz.trace as trace_package
from tinyserve_viz.trace import IMPORTERS, Request, Trace, read_trace

OURS = """{"schema": "tinyserve-viz/trace/1", "seed": 7, "hash_block": 16,
 "engine": {"num_blocks": 256, "ratio": 0.3, "watermark": 0.0}, "model": {"num_layers": 2},
 "content": {"kind": "topics", "locality": 0.9},
 "requests": [{"id": "a", "prompt_len": 20, "output_len": 2, "prefix_hash_ids": [5, 9], "n": 2},
              {"arrival_ms": 0.5, "prompt_len": 3, "output_len": 1, "prompt_tokens": [1, 2, 3], "output_tokens": [4]},
              {"arrival_ms": 2, "prompt_len": 30, "output_len": 0, "parent": "a", "cancel_at_ms": 9, "priority": -1}]}
"""
MOONCAKE = """{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 1.5, "input_length": 512, "output_length": 0, "hash_ids": [0]}
"""
TOKENS = """{"input_toks": 2, "output_toks": 1, "arrival_time_ns": 1999, "input_tok_ids": [7, 8], "output_tok_ids": [9]}
{"input_toks": 1, "output_toks": 4, "arrival_time_ns": 3000, "input_tok_ids": [7]}
"""
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951699,1,0
""".replace("\n", "\r\n")
LENGTHS = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3772,54,3826,69.85\n\n2,0,2,0\n"

SAMPLES = {"mooncake": MOONCAKE, "tokens": TOKENS, "azure": AZURE, "lengths": LENGTHS, "json": OURS}


def plain(value: Any) -> Any:
    """A trace or request as values that compare with ==."""
    if isinstance(value, Trace | Request):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_our_own_file_becomes_requests_with_times_in_microseconds_and_ratios_per_mille(tmp_path: Path) -> None:
    file = tmp_path / "ours.json"
    file.write_text(OURS)
    assert plain(read_trace(file)) == plain(
        Trace(
            name="ours",
            format="json",
            seed=7,
            hash_block=16,
            engine={"num_blocks": 256, "ratio_permille": 300, "watermark_permille": 0},
            model={"num_layers": 2},
            content={"kind": "topics", "locality_permille": 900},
            requests=(
                Request("a", 0, 20, 2, prefix_hash_ids=np.array([5, 9]), n=2),
                Request("r1", 500, 3, 1, prompt_tokens=np.array([1, 2, 3]), output_tokens=np.array([4])),
                Request("r2", 2000, 30, 0, parent="a", fork_at=20, cancel_at_us=9000, priority=-1),
            ),
        )
    )


def test_without_a_hash_block_an_id_covers_the_block_size_that_the_file_names(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    request = '"requests": [{"prompt_len": 8, "output_len": 1, "prefix_hash_ids": [1]}]'
    file.write_text('{"schema": "tinyserve-viz/trace/1", "engine": {"block_size": 4}, %s}' % request)  # noqa: UP031
    assert read_trace(file).hash_block == 4
    file.write_text('{"schema": "tinyserve-viz/trace/1", %s}' % request)  # noqa: UP031
    assert read_trace(file).hash_block == 0


def test_mooncake_rows_keep_their_hash_ids_of_512_tokens(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text(MOONCAKE)
    assert plain(read_trace(file)) == plain(
        Trace(
            "m",
            "mooncake",
            (
                Request("r0", 0, 600, 5, prefix_hash_ids=np.array([0, 1])),
                Request("r1", 1500, 512, 0, prefix_hash_ids=np.array([0])),
            ),
            hash_block=512,
        )
    )


def test_tokens_rows_keep_the_ids_of_prompt_and_output(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text(TOKENS)
    assert plain(read_trace(file)) == plain(
        Trace(
            "s",
            "tokens",
            (
                Request("r0", 1, 2, 1, prompt_tokens=np.array([7, 8]), output_tokens=np.array([9])),
                Request("r1", 3, 1, 4, prompt_tokens=np.array([7])),
            ),
        )
    )


def test_azure_times_count_from_the_first_row_and_lose_the_seventh_digit(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(AZURE.encode())
    assert plain(read_trace(file)) == plain(
        Trace("a", "azure", (Request("r0", 0, 374, 44), Request("r1", 4_314_579, 1, 0)))
    )


def test_lengths_arrive_at_zero_unless_the_file_says_when(tmp_path: Path) -> None:
    file = tmp_path / "l.csv"
    file.write_text(LENGTHS)
    assert plain(read_trace(file)) == plain(Trace("l", "lengths", (Request("r0", 0, 3772, 54), Request("r1", 0, 2, 0))))
    file.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.25,3,4\n1,5,6\n")
    assert [request.arrival_us for request in read_trace(file).requests] == [250_000, 1_000_000]


@pytest.mark.parametrize("importer", IMPORTERS, ids=lambda importer: importer.NAME)
def test_each_format_is_recognised_by_its_importer_and_by_no_other(importer: Any) -> None:
    head = SAMPLES[importer.NAME].encode()
    assert [other.NAME for other in IMPORTERS if other.sniff(head, "file")] == [importer.NAME]


@pytest.mark.parametrize("importer", IMPORTERS, ids=lambda importer: importer.NAME)
def test_a_gzip_file_and_a_byte_order_mark_change_nothing(importer: Any, tmp_path: Path) -> None:
    data = SAMPLES[importer.NAME].encode()
    (tmp_path / "t.txt").write_bytes(data)
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(data))
    (tmp_path / "marked").mkdir()
    (tmp_path / "marked" / "t.txt").write_bytes(b"\xef\xbb\xbf" + data)
    expected = plain(read_trace(tmp_path / "t.txt"))
    assert expected["format"] == importer.NAME
    assert plain(read_trace(tmp_path / "t.txt.gz")) == expected
    assert plain(read_trace(tmp_path / "marked" / "t.txt")) == expected


@pytest.mark.parametrize("importer", IMPORTERS, ids=lambda importer: importer.NAME)
def test_a_limit_keeps_the_first_requests(importer: Any, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(SAMPLES[importer.NAME])
    whole = plain(read_trace(tmp_path / "t", format=importer.NAME))
    assert plain(read_trace(tmp_path / "t", limit=1))["requests"] == whole["requests"][:1]
    assert plain(read_trace(tmp_path / "t", limit=99)) == whole


def test_every_importer_in_the_folder_is_listed() -> None:
    modules = [
        import_module(f"tinyserve_viz.trace.{found.name}") for found in pkgutil.iter_modules(trace_package.__path__)
    ]
    assert {module.NAME for module in modules if hasattr(module, "sniff")} == {importer.NAME for importer in IMPORTERS}


def test_the_real_mooncake_trace_has_the_published_facts(real_traces: Path) -> None:
    requests = read_trace(real_traces / "mooncake_conversation.jsonl").requests
    assert len(requests) == 12_031
    prompts = [request.prompt_len for request in requests]
    assert (round(np.mean(prompts)), round(np.mean([r.output_len for r in requests]))) == (
        12_035,
        343,
    )  # FAST'25, Table 2
    ids = [request.prefix_hash_ids for request in requests]
    assert all(len(of) == math.ceil(prompt / 512) for of, prompt in zip(ids, prompts, strict=True))
    assert all(of[0] == 0 for of in ids)
    assert requests[-1].arrival_us == 3_536_999_000


def test_the_other_real_traces_are_read_whole(real_traces: Path) -> None:
    azure = read_trace(real_traces / "azure_llm_2023_conv.csv")
    assert (len(azure.requests), azure.requests[-1].arrival_us // 100_000) == (19_366, 35_017)
    sharegpt = read_trace(real_traces / "sharegpt_llama3.1-8b_rows001-200.jsonl")
    assert (len(sharegpt.requests), sharegpt.requests[0].arrival_us) == (200, 46_926)
    arxiv = read_trace(real_traces / "arxiv_summarization_lengths_rows00001-14000.csv")
    assert (len(arxiv.requests), arxiv.requests[0].prompt_len) == (14_000, 3772)
