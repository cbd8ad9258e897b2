"""The generator: same arguments, same bytes; each kind holds the stress that it is named for."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from tinyserve_viz.cli.gen import KIND_NAMES
from tinyserve_viz.cli.main import main
from tinyserve_viz.trace import Trace, native, read_trace
from tinyserve_viz.trace.generate import KINDS, LONG_CONTEXT, generate

TRACES = Path(__file__).parents[2] / "traces"
COMMANDS = re.findall(r"`tinyserve-viz (gen .*?)`", (TRACES / "README.md").read_text())


def made(kind: str, seed: int = 0) -> Trace:
    return generate(kind, seed, KINDS[kind].shape)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_a_valid_trace_of_the_size_asked_for(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_bytes(native.encode(made(kind)))
    trace = read_trace(file)
    assert len(trace.requests) == KINDS[kind].shape.requests
    assert native.encode(trace) == file.read_bytes()
    assert trace.requests[0].arrival_us == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_every_byte(kind: str) -> None:
    assert native.encode(made(kind)) == native.encode(made(kind))
    assert native.encode(made(kind)) != native.encode(made(kind, seed=1))


def test_the_command_line_knows_every_kind() -> None:
    assert tuple(KINDS) == KIND_NAMES


def test_prefix_requests_repeat_what_earlier_ones_said() -> None:
    seen: set[int] = set()
    repeated = 0
    for request in made("prefix").requests:
        assert request.prefix_hash_ids is not None
        ids = request.prefix_hash_ids.tolist()
        known = [id_ in seen for id_ in ids]
        assert known == sorted(known, reverse=True)  # what is known is a prefix
        repeated += sum(known)
        seen.update(ids)
    assert repeated > len(seen)


def test_samples_ask_for_up_to_eight_and_forks_go_on_from_prompts_and_outputs() -> None:
    assert {request.n for request in made("samples").requests} == {1, 2, 3, 4, 8}
    requests = {request.id: request for request in made("forks").requests}
    children = [request for request in requests.values() if request.parent is not None]
    into_output = [child for child in children if child.fork_at > requests[child.parent].prompt_len]  # type: ignore[index,operator]
    assert len(children) > len(requests) / 3
    assert into_output
    assert any(request.n > 1 for request in requests.values())


def test_long_contexts_end_at_131072_tokens_and_share_a_document() -> None:
    requests = made("long").requests
    lengths = [request.prompt_len + request.output_len for request in requests]
    assert lengths.count(LONG_CONTEXT) == 4
    first, second = requests[0].prefix_hash_ids, requests[1].prefix_hash_ids
    assert first is not None
    assert second is not None
    assert len(set(first.tolist()) & set(second.tolist())) >= 64


def test_fragmentation_puts_short_lives_beside_long_ones() -> None:
    outputs = [request.output_len for request in made("fragmentation").requests]
    shape = KINDS["fragmentation"].shape
    assert sum(output > 10 * shape.output_len for output in outputs) == len(outputs) // 2


def test_bursts_come_within_a_second_and_pauses_are_longer() -> None:
    times = [request.arrival_us for request in made("bursty").requests]
    gaps = [after - before for before, after in pairwise(times)]
    assert sorted(gaps)[len(gaps) // 2] < 3_000
    assert max(gaps) > 1_000_000


@pytest.mark.parametrize("command", COMMANDS)
def test_a_shipped_trace_is_what_its_command_makes(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    place = words.index("-o") + 1
    shipped = TRACES / Path(words[place]).name
    words[place] = str(tmp_path / "again.json")
    assert main(words) == 0
    assert (tmp_path / "again.json").read_bytes() == shipped.read_bytes()


def test_every_shipped_trace_is_valid_and_described() -> None:
    text = (TRACES / "README.md").read_text()
    names = sorted(file.name for file in TRACES.glob("*.json"))
    assert {"quickstart.json", "by-hand.json", "prefix.json", "forks.json", "long.json"} <= set(names)
    assert {"fragmentation.json", "bursty.json"} <= set(names)
    for name in names:
        assert f"`{name}`" in text
        assert read_trace(TRACES / name).requests


def test_the_hand_made_trace_fits_on_paper() -> None:
    trace = read_trace(TRACES / "by-hand.json")
    assert trace.engine["block_size"] == 4
    assert trace.engine["num_blocks"] <= 12
