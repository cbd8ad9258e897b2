"""Every way a trace can be wrong gives one line that says where, what was found and what was expected."""

# ruff: noqa: E501 (a case is one line: input, then the error)

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from tinyserve_viz.core.errors import TraceError
from tinyserve_viz.trace import read_trace


def ours(requests: str, header: str = "") -> str:
    return f'{{"schema": "tinyserve-viz/trace/1", {header}"requests": [{requests}]}}'


def request(extra: str = "", prompt_len: object = 8, output_len: object = 2) -> str:
    return f'{{"prompt_len": {prompt_len}, "output_len": {output_len}{", " if extra else ""}{extra}}}'


PARENT = request('"id": "p"')
OUR_CASES = [
    (ours(request())[:-10], ":1: JSON that ends too early, expected a complete object"),
    ('{"schema": "tinyserve-viz/trace/1",\n "requests": [{]}', ":2: not JSON at column 16 (expected '\"'), expected a JSON object"),
    (ours(request(prompt_len='"8"')), ": $.requests[0].prompt_len is '8', expected a whole number"),
    (ours(request(prompt_len=8.5)), ": $.requests[0].prompt_len is 8.5, expected a whole number"),
    (ours(request(prompt_len="true")), ": $.requests[0].prompt_len is true, expected a whole number"),
    (ours(request(prompt_len="null")), ": $.requests[0].prompt_len is null, expected a whole number"),
    (ours(request(prompt_len="[8]")), ": $.requests[0].prompt_len is an array, expected a whole number"),
    (ours(request(prompt_len=0)), ": $.requests[0].prompt_len is 0, expected 1 to 1048576"),
    (ours(request(prompt_len=-4)), ": $.requests[0].prompt_len is -4, expected 1 to 1048576"),
    (ours(request() + "," + request(prompt_len=1_048_577)), ": $.requests[1].prompt_len is 1048577, expected 1 to 1048576"),
    (ours(request(prompt_len=10**25)), f": $.requests[0].prompt_len is {10**25}, expected 1 to 1048576"),
    (ours(request(output_len=-1)), ": $.requests[0].output_len is -1, expected 0 to 1048576"),
    (ours('{"prompt_len": 8}'), ": $.requests[0].output_len is missing, expected a value"),
    (ours(request('"arrival_ms": NaN')), ":1: NaN is not a JSON number, expected a finite number"),
    (ours(request('\n"arrival_ms": -Infinity')), ":2: -Infinity is not a JSON number, expected a finite number"),
    (ours(request('"arrival_ms": 1e999')), ": $.requests[0].arrival_ms is out of range, expected a finite number"),
    (ours(request('"arrival_ms": -0.5')), ": $.requests[0].arrival_ms is -0.5, expected 0 to 1e+12"),
    (ours(request('"arrival_ms": 5') + "," + request('"arrival_ms": 4.5')), ": $.requests[1].arrival_ms is 4.5, expected order of arrival: at least 5"),
    (ours(request('"arrival_ms": 5, "cancel_at_ms": 4')), ": $.requests[0].cancel_at_ms is 4, expected at least arrival_ms 5"),
    (ours(request('"priority": 1.5')), ": $.requests[0].priority is 1.5, expected a whole number"),
    (ours(request('"id": 7')), ": $.requests[0].id is 7, expected a string or null"),
    (ours(request('"promt": 7')), ": $.requests[0].promt is an unknown field, expected id, arrival_ms, prompt_len, output_len, prefix_hash_ids, prompt_tokens, output_tokens, n, parent, fork_at, cancel_at_ms, priority"),
    (ours(PARENT + "," + PARENT), ": $.requests[1].id is 'p', which an earlier request has, expected ids to differ"),
    (ours(request('"id": "r1"') + "," + request()), ": $.requests[1].id is 'r1', which an earlier request has, expected ids to differ"),
    (ours(request('"parent": "p"') + "," + PARENT), ": $.requests[0].parent is 'p', expected the id of an earlier request"),
    (ours(request('"id": "p", "parent": "p"')), ": $.requests[0].parent is 'p', expected the id of an earlier request"),
    (ours(PARENT + "," + request('"parent": "p", "fork_at": 0')), ": $.requests[1].fork_at is 0, expected 1 to 8"),
    (ours(PARENT + "," + request('"parent": "p", "fork_at": 11', 20)), ": $.requests[1].fork_at is 11, expected 1 to 10"),
    (ours(request('"fork_at": 1')), ": $.requests[0].fork_at is 1 without a parent, expected both or neither"),
    (ours(PARENT + "," + request('"parent": "p", "n": 2')), ": $.requests[1].n is 2 in a request with a parent, expected 1"),
    (ours(request('"n": 0')), ": $.requests[0].n is 0, expected 1 to 65536"),
    (ours(request('"prefix_hash_ids": [1, 2, 3]'), '"hash_block": 4, '), ": $.requests[0].prefix_hash_ids has length 3, expected at most ceil(8 / 4) = 2"),
    (ours(request('"prefix_hash_ids": [1, 1]')), ": $.requests[0].prefix_hash_ids names 1 twice, expected each id once in a request"),
    (ours(request('"prefix_hash_ids": [1, -1]')), ": $.requests[0].prefix_hash_ids[1] is -1, expected 0 to 9223372036854775807"),
    (ours(request('"prefix_hash_ids": [1, "a"]')), ": $.requests[0].prefix_hash_ids[1] is 'a', expected a whole number"),
    (ours(request('"prompt_tokens": [1, 2]')), ": $.requests[0].prompt_tokens has length 2, expected 8"),
    (ours(request('"output_tokens": [1, 4294967296]')), ": $.requests[0].output_tokens[1] is 4294967296, expected 0 to 2147483647"),
    (ours(request(), '"engine": {"block_size": 0}, '), ": $.engine.block_size is 0, expected a whole number from 1 to 1024"),
    (ours(request(), '"engine": {"block_size": "16"}, '), ": $.engine.block_size is '16', expected a whole number"),
    (ours(request(), '"engine": {"eviction": "lruu"}, '), ": $.engine: unknown eviction 'lruu'; known: clock, fifo, lfu, lru, seed"),
    (ours(request(), '"engine": {"ratio": 1.5}, '), ": $.engine.ratio is 1.5, expected 0 to 1"),
    (ours(request(), '"engine": {"ratio": 0.3333}, '), ": $.engine.ratio is 0.3333, expected at most three decimal places"),
    (ours(request(), '"engine": {"ratio": 0.3, "ratio_permille": 300}, '), ": $.engine sets ratio and ratio_permille, expected one of them"),
    (ours(request(), '"engine": 7, '), ": $.engine is 7, expected an object"),
    (ours(request(), '"model": {"heads": 3}, '), ": $.model.heads is an unknown field, expected num_layers, num_heads, num_kv_heads, head_dim"),
    (ours(request(), '"model": {"num_heads": 3}, '), ": $.model.num_heads is 3, expected a multiple of num_kv_heads 2"),
    (ours(request(), '"content": {"kind": "x"}, '), ": $.content: unknown content.kind 'x'; known: iid, npz, topics"),
    (ours(request(), '"seed": -1, '), ": $.seed is -1, expected 0 to 9223372036854775807"),
    (ours(request(), '"hash_block": 0, '), ": $.hash_block is 0, expected 1 to 1048576"),
    (ours(""), ": $.requests is empty, expected at least one request"),
    (ours("7"), ": $.requests[0] is 7, expected an object"),
    ('{"schema": "tinyserve-viz/trace/1"}', ": $.requests is missing, expected a value"),
    ('{"schema": "tinyserve-viz/trace/2", "requests": [], "new": 1}', ": $.schema is 'tinyserve-viz/trace/2', expected 'tinyserve-viz/trace/1'"),
    ('{"requests": []}', ": $.schema is missing, expected a value"),
    ("[]", ": $ is an array, expected an object"),
    ("[" * 200_000, ": $ is of another type, expected an object"),
]  # fmt: skip


def mooncake(length: object = 600, ids: str = "[1, 2]", time: object = 3, output: object = 2, extra: str = "") -> str:
    return f'{{"timestamp": {time}, "input_length": {length}, "output_length": {output}, "hash_ids": {ids}{extra}}}\n'


def tokens(ids: str = "[1, 2]", output: str = "[3]", time: int = 5) -> str:
    counts = f'"input_toks": 2, "output_toks": 1, "arrival_time_ns": {time}'
    return f'{{{counts}, "input_tok_ids": {ids}, "output_tok_ids": {output}}}\n'


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n"
LENGTHS = "num_prefill_tokens,num_decode_tokens\n3,4\n"

LINE_CASES = [
    ("m.jsonl", mooncake() + mooncake()[:-20], ":2: JSON that ends too early, expected a complete object"),
    ("m.jsonl", mooncake() + "hello\n", ":2: not JSON at column 1 (invalid character), expected a JSON object"),
    ("m.jsonl", "\n" + mooncake() + "\n[]\n", ":4: the line is an array, expected an object"),
    ("m.jsonl", mooncake() + mooncake('"600"'), ":2: input_length is '600', expected a whole number"),
    ("m.jsonl", mooncake() + mooncake(-600), ":2: input_length is -600, expected 1 to 1048576"),
    ("m.jsonl", mooncake() + mooncake(2_000_000), ":2: input_length is 2000000, expected 1 to 1048576"),
    ("m.jsonl", mooncake() + mooncake(output=-4), ":2: output_length is -4, expected 0 to 1048576"),
    ("m.jsonl", mooncake() + mooncake(time="NaN"), ":2: NaN is not a JSON number, expected a finite number"),
    ("m.jsonl", mooncake() + mooncake(time=-1), ":2: timestamp is -1, expected 0 to 1e+12 ms"),
    ("m.jsonl", mooncake() + mooncake(time=2), ":2: timestamp is 2, expected order of arrival: at least 3"),
    ("m.jsonl", mooncake() + mooncake(ids="[1]"), ":2: hash_ids has length 1, expected ceil(600 / 512) = 2"),
    ("m.jsonl", mooncake() + mooncake(ids="[1, 1]"), ":2: hash_ids names 1 twice, expected each id once in a row"),
    ("m.jsonl", mooncake() + mooncake(ids="[1, -2]"), ":2: hash_ids has -2, expected 0 to 9223372036854775807"),
    ("m.jsonl", mooncake() + mooncake(ids="7"), ":2: hash_ids is 7, expected an array"),
    ("m.jsonl", mooncake(extra=', "x": 1'), ":1: x is an unknown field, expected timestamp, input_length, output_length, hash_ids"),
    ("m.jsonl", '{"timestamp": 1, "input_length": 3, "hash_ids": [1]}', ":1: output_length is missing, expected a value"),
    ("s.jsonl", tokens() + tokens("[1]"), ":2: input_tok_ids has length 1, expected 2"),
    ("s.jsonl", tokens() + tokens(output="[3, 4]"), ":2: output_tok_ids has length 2, expected 1"),
    ("s.jsonl", tokens() + tokens(output="[-3]"), ":2: output_tok_ids has -3, expected 0 to 2147483647"),
    ("s.jsonl", tokens() + tokens('[1, "b"]'), ":2: input_tok_ids[1] is 'b', expected a whole number"),
    ("s.jsonl", tokens() + tokens(time=4), ":2: arrival_time_ns is 4, expected order of arrival: at least 5"),
    ("s.jsonl", tokens(time=-4), ":1: arrival_time_ns is -4, expected 0 to 1e+18"),
    ("a.csv", AZURE.replace("GeneratedTokens", "Generated"), ":1: no column GeneratedTokens, expected TIMESTAMP, ContextTokens, GeneratedTokens; found 'TIMESTAMP', 'ContextTokens', 'Generated'"),
    ("a.csv", AZURE + "2023-11-16 18:15:47.0,x,44\r\n", ":3: ContextTokens is 'x', expected a whole number"),
    ("a.csv", AZURE + "2023-11-16 18:15:47.0,,44\r\n", ":3: ContextTokens is '', expected a whole number"),
    ("a.csv", AZURE + "2023-11-16 18:15:47.0,4.5,44\r\n", ":3: ContextTokens is '4.5', expected a whole number"),
    ("a.csv", AZURE + "2023-11-16 18:15:47.0,4,-44\r\n", ":3: GeneratedTokens is -44, expected 0 to 1048576"),
    ("a.csv", AZURE + "2023-11-16 18:15:47.0,4\r\n", ":3: 2 cells, expected 3"),
    ("a.csv", AZURE + "yesterday,4,4\r\n", ":3: TIMESTAMP is 'yesterday', expected a time such as 2023-11-16 18:15:46.6805900"),
    ("a.csv", AZURE + "2023-11-16 18:15:45.0,4,4\r\n", ":3: TIMESTAMP is '2023-11-16 18:15:45.0', expected order of arrival: at least 2023-11-16 18:15:46.680590"),
    ("a.csv", AZURE + '2023-11-16 18:15:47.0,"4,4\r\n', ":3: not CSV (unexpected end of data), expected TIMESTAMP, ContextTokens, GeneratedTokens"),
    ("a.csv", AZURE[:41], ": no requests, expected at least one"),
    ("l.csv", LENGTHS + "a,4\n", ":3: num_prefill_tokens is 'a', expected a whole number"),
    ("l.csv", LENGTHS + "0,4\n", ":3: num_prefill_tokens is 0, expected 1 to 1048576"),
    ("l.csv", LENGTHS + f"{'9' * 30},4\n", f":3: num_prefill_tokens is '{'9' * 30}', expected 1 to 1048576"),
    ("l.csv", LENGTHS.replace("num_decode_tokens", "x"), ":1: no column num_decode_tokens, expected num_prefill_tokens, num_decode_tokens; found 'num_prefill_tokens', 'x'"),
    ("l.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\nnan,3,4\n", ":2: arrived_at is 'nan', expected 0 or more seconds"),
    ("u.txt", "hello\n", ": unknown format, starts with 'hello'; expected one of azure, json, lengths, mooncake, tokens (--format names it)"),
    ("e.json", "", ": the file is empty, expected a trace"),
    ("e.json", " \n", ": the file is empty, expected a trace"),
    ("b.bin", b"\x89PNG\r\n\x1a\n\0", ":1: binary data (byte 0x89), expected text in UTF-8"),
    ("b.csv", LENGTHS.encode() + b"\0", ":3: binary data (byte 0x00), expected text in UTF-8"),
    ("z.jsonl.gz", gzip.compress(mooncake().encode())[:-9], ": broken gzip data, expected a complete .gz file"),
    ("z.jsonl.gz", b"\x1f\x8bjunk", ": broken gzip data, expected a complete .gz file"),
]  # fmt: skip


CASES = [("t.json", *case) for case in OUR_CASES] + LINE_CASES


@pytest.mark.parametrize(("name", "content", "expected"), CASES, ids=range(len(CASES)))
def test_a_bad_trace_is_refused_in_one_line(
    name: str, content: str | bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TraceError) as raised:
        read_trace(name)
    assert str(raised.value) == name + expected
    assert raised.value.exit_code == 2


def test_what_is_no_readable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, expected in (
        ("none.json", "none.json: no such file, expected a trace"),
        (".", ".: is a directory, expected a trace file"),
        ("a\0b", "a\0b: cannot be read (embedded null byte)"),
    ):
        with pytest.raises(TraceError) as raised:
            read_trace(path)
        assert str(raised.value) == expected


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t.json"
    file.write_text(ours(request()))
    if os.geteuid() == 0:  # root may read everything

        def refuse(_: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_bytes", refuse)
    else:
        file.chmod(0)
    with pytest.raises(TraceError) as raised:
        read_trace(file)
    assert str(raised.value) == f"{file}: no permission to read it"


def test_options_that_no_trace_can_meet_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(ours(request()))
    for options, expected in (
        ({"format": "foo"}, "unknown trace format 'foo'; known: azure, json, lengths, mooncake, tokens"),
        ({"limit": 0}, "limit is 0, expected 1 or more requests"),
        ({"max_len": 5}, f"{file}: $.requests[0].prompt_len is 8, expected 1 to 5"),
        ({"format": "mooncake"}, f"{file}:1: schema is an unknown field, expected timestamp, input_length, output_length, hash_ids"),
    ):  # fmt: skip
        with pytest.raises(TraceError) as raised:
            read_trace(file, **options)
        assert str(raised.value) == expected
