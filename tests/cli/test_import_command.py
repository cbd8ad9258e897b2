"""The command `import`: any format becomes our JSON, and nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyserve_viz.cli.main import main
from tinyserve_viz.trace import native, read_trace

MOONCAKE = '{"timestamp": 1.5, "input_length": 600, "output_length": 5, "hash_ids": [4, 9]}\n'
TOKENS = (
    '{"input_toks": 2, "output_toks": 1, "arrival_time_ns": 9000, "input_tok_ids": [7, 8], "output_tok_ids": [3]}\n'
)
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n"
LENGTHS = "num_prefill_tokens,num_decode_tokens\n3772,54\n"


@pytest.mark.parametrize("content", [MOONCAKE, TOKENS, AZURE, LENGTHS])
def test_what_is_imported_reads_back_equal(content: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out.json"
    source.write_bytes(content.encode())
    assert main(["import", str(source), "-o", str(out)]) == 0
    assert native.encode(read_trace(out)) == native.encode(read_trace(source)) == out.read_bytes()


def test_limit_and_format_are_taken_and_json_says_what_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.json"
    source.write_text(MOONCAKE * 3)
    assert main(["import", str(source), "-o", str(out), "--format", "mooncake", "--limit", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "trace": {"name": "rows", "format": "mooncake", "num_requests": 2},
        "output": str(out),
        "bytes": out.stat().st_size,
    }
    assert len(read_trace(out).requests) == 2


def test_a_bad_source_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.json"
    source.write_text(MOONCAKE.replace("1.5", "-1.5"))
    assert main(["import", str(source), "-o", str(out), "--format", "mooncake"]) == 2
    assert capsys.readouterr().err == f"tinyserve-viz: {source}:1: timestamp is -1.5, expected 0 to 1e+12 ms\n"
    assert not out.exists()


def test_real_traces_of_every_format_read_back_equal(real_traces: Path, tmp_path: Path) -> None:
    files = [file for file in real_traces.iterdir() if file.suffix in (".jsonl", ".csv")]
    assert files
    for file in files:
        out = tmp_path / f"{file.stem}.json"
        assert main(["import", str(file), "-o", str(out), "--limit", "300"]) == 0
        assert out.read_bytes() == native.encode(read_trace(file, limit=300)) == native.encode(read_trace(out))
