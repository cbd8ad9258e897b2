"""The command `curve`: the published table, its JSON and its text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyserve_viz.analysis.curve import POLICIES
from tinyserve_viz.cli.curve import POLICY_NAMES
from tinyserve_viz.cli.main import main

ROWS = "".join(
    f'{{"timestamp": 0, "input_length": {length}, "output_length": 1, "hash_ids": {ids}}}\n'
    for length, ids in ((1024, [7, 8]), (700, [7, 9]), (1024, [7, 8]))
)

# reference-numbers: block hit rates of the Mooncake conversation trace in blocks of 512, exact to six places
CAPACITIES = "1000,5859,10000,30000,50000,100000,inf"
TABLE = {
    "lru": (0.044475, 0.135532, 0.211165, 0.325709, 0.354558, 0.363688, 0.366412),
    "fifo": (0.043532, 0.126984, 0.186523, 0.302087, 0.340021, 0.359276, 0.366412),
    "lfu": (0.048080, 0.096603, 0.131761, 0.275893, 0.343809, 0.363102, 0.366412),
    "clock": (0.044659, 0.137917, 0.214315, 0.329095, 0.354211, 0.363102, 0.366412),
    "belady": (0.190620, 0.353137, 0.366412, 0.366412, 0.366412, 0.366412, 0.366412),
}


def test_the_command_line_knows_every_policy() -> None:
    assert tuple(POLICIES) == POLICY_NAMES


def test_json_names_the_trace_and_one_result_for_every_policy_and_capacity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.jsonl"
    file.write_text(ROWS)
    assert main(["curve", str(file), "--policy", "lru,belady", "--capacity", "2,inf", "--json"]) == 0

    def result(policy: str, capacity: int | None, hits: int) -> dict[str, object]:
        rates = {"block_hit_rate": hits / 6, "token_hit_rate": hits * 512 / 2748}
        return {"policy": policy, "capacity": capacity, "hits": hits, "hit_tokens": hits * 512, **rates}

    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "trace": {
            "name": "small",
            "format": "mooncake",
            "num_requests": 3,
            "prompt_tokens": 2748,
            "references": 6,
            "distinct_blocks": 3,
        },
        "block_size": 512,
        "results": [result("lru", 2, 2), result("lru", None, 3), result("belady", 2, 2), result("belady", None, 3)],
    }


def test_without_json_it_is_an_aligned_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.jsonl"
    file.write_text(ROWS)
    assert main(["curve", str(file), "--policy", "lru,fifo", "--capacity", "2,inf"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "small (mooncake): 3 requests, 6 references to 3 blocks of 512 tokens",
        "",
        "block hit rate           2       inf",
        "lru               0.333333  0.500000",
        "fifo              0.166667  0.500000",
        "",
        "token hit rate           2       inf",
        "lru               0.372635  0.558952",
        "fifo              0.186317  0.558952",
    ]


def test_a_trace_that_tells_no_content_has_no_hits_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "l.csv"
    file.write_text("num_prefill_tokens,num_decode_tokens\n3772,54\n")
    assert main(["curve", str(file), "--capacity", "inf", "--policy", "lru", "--json"]) == 0
    captured = capsys.readouterr()
    (point,) = json.loads(captured.out)["results"]
    assert (point["block_hit_rate"], point["token_hit_rate"]) == (0.0, 0.0)
    assert captured.err == (
        f"tinyserve-viz curve: {file}: no block can be referenced: it has no prefix hash ids and no token ids\n"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--policy", "lru,lruu"], "argument --policy: unknown policy 'lruu'; known: belady, clock, fifo, lfu, lru"),
        (["--capacity", "10,0"], "argument --capacity: '0' given, expected a whole number, 1 to 1099511627776"),
        (["--capacity", "many"], "argument --capacity: 'many' given, expected a whole number, 1 to 1099511627776"),
        (["--block-size", "-1"], "argument --block-size: '-1' given, expected a whole number, 1 to 1048576"),
        (["--limit", "0"], "argument --limit: '0' given, expected a whole number, 1 or more"),
        (["--jsn"], "unrecognized arguments: --jsn"),
    ],
)
def test_a_bad_option_is_one_line_on_stderr(
    options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["curve", "t.json", *options]) == 2
    assert capsys.readouterr() == ("", f"tinyserve-viz curve: {expected}; see --help\n")


def test_a_block_size_that_does_not_divide_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.jsonl"
    file.write_text(ROWS)
    assert main(["curve", str(file), "--block-size", "100"]) == 2
    assert capsys.readouterr().err == (
        "tinyserve-viz: block_size is 100, expected a divisor of small's hash_block 512 "
        "(one prefix hash id covers that many tokens)\n"
    )


def test_the_published_table_comes_out_to_six_places(real_traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(real_traces / "mooncake_conversation.jsonl")
    assert main(["curve", file, "--block-size", "512", "--capacity", CAPACITIES, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["trace"]["references"], printed["trace"]["distinct_blocks"]) == (288_500, 182_790)
    found: dict[str, tuple[float, ...]] = {}
    for point in printed["results"]:
        found[point["policy"]] = (*found.get(point["policy"], ()), round(point["block_hit_rate"], 6))
    assert found == TABLE
    assert {round(point["token_hit_rate"], 5) for point in printed["results"] if point["capacity"] is None} == {0.37362}


def test_the_share_of_tokens_that_can_hit_does_not_depend_on_the_block_size(
    real_traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(real_traces / "mooncake_conversation.jsonl")
    rates = []
    for block_size in ("512", "128"):
        arguments = ["--limit", "2000", "--policy", "lru", "--capacity", "inf", "--json"]
        assert main(["curve", file, "--block-size", block_size, *arguments]) == 0
        rates.append(json.loads(capsys.readouterr().out)["results"][0]["hit_tokens"])
    assert rates[0] == rates[1]
