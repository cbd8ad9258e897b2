"""`claims` on real traces gives, to four places, the utilisation that was computed without this program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyserve_viz.cli.main import main

EXPECTED = {
    "azure_llm_2023_conv.csv": {
        "contiguous": 0.0749, "pow2": 0.8155, "exact": 0.8797, "paged, blocks of 8": 0.9972,
        "paged, blocks of 16": 0.9939, "paged, blocks of 32": 0.9875, "paged, blocks of 64": 0.9750,
        "paged, blocks of 128": 0.9506,
    },
    "sharegpt_llama3.1-8b_rows001-200.jsonl": {
        "contiguous": 0.1462, "pow2": 0.6357, "exact": 0.7806, "paged, blocks of 8": 0.9971,
        "paged, blocks of 16": 0.9938, "paged, blocks of 32": 0.9872, "paged, blocks of 64": 0.9744,
        "paged, blocks of 128": 0.9496,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_paged_memory_is_used_above_96_per_cent_and_reserved_memory_to_7_or_15(
    name: str, real_traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["claims", str(real_traces / name), "--only", "utilisation", "--requests", "100", "--quiet", "--json"]
    assert main(arguments) == 0
    (claim,) = json.loads(capsys.readouterr().out)["claims"]
    found = {number["name"]: number["value"] for number in claim["numbers"]}
    assert {row: round(found[row], 4) for row in EXPECTED[name]} == EXPECTED[name]
    assert "above 96 % shown for blocks of 16" in claim["verdict"]
