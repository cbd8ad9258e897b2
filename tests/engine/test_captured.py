"""Captured content: what a file must hold, what it gives, and what is said when it does not fit or is gone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine import captures
from tests.engine.captures import DIM, HEADS, KV_HEADS, LAYERS, TOKENS, two_requests
from tinyserve_viz.cli.inspector import ContentInspector
from tinyserve_viz.cli.main import main
from tinyserve_viz.cli.session import Settings, prepare, run_replay, summarize_recording
from tinyserve_viz.core.config import ContentConfig, ModelConfig
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.engine.captured import CapturedContent, read_capture
from tinyserve_viz.recording.timeline import Timeline


def settings(path: Path, **more: Any) -> Settings:
    return Settings(content={"kind": "npz", "path": str(path)}, **more)


def test_position_i_of_every_sequence_is_captured_token_i(tmp_path: Path) -> None:
    made = captures.arrays()
    content = CapturedContent(read_capture(str(captures.write(tmp_path / "c.npz"))))
    kv = content.keys_and_values(7, 10, 13, 1)
    assert np.array_equal(kv[:, 0], made["k"][1, 10:13])
    assert np.array_equal(kv[:, 1], made["v"][1, 10:13])
    assert np.array_equal(content.queries(np.array([0, 3]), np.array([5, 90]), 0), made["q"][0, [5, 90]])
    assert content.scale == np.float32(0.25)


def test_a_replay_takes_shape_and_content_from_the_file_and_names_it(tmp_path: Path) -> None:
    path = captures.write(tmp_path / "c.npz")
    summary = run_replay(prepare(two_requests(), settings(path)))
    assert summary["invariants"]["violations"] == 0
    assert summary["config"]["model"] == {
        "num_layers": LAYERS, "num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": DIM,
    }  # fmt: skip
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert summary["content"]["sha256"] == digest
    assert summary["content"]["description"] == f"npz(c.npz, sha256 {digest[:12]})"
    assert summary["content"]["captured"] == {
        "path": str(path), "sha256": digest, "num_tokens": TOKENS, "scale": 0.25,
    }  # fmt: skip
    assert summary["selection"]["content"] == summary["content"]["description"]


def test_float32_is_rounded_and_the_scale_may_be_left_out(tmp_path: Path) -> None:
    made = captures.arrays()
    path = captures.write(tmp_path / "c.npz", q=made["q"].astype(np.float32), scale=None)
    capture = read_capture(str(path))
    assert np.array_equal(capture.q, made["q"])
    assert capture.scale == np.float32(DIM**-0.5)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"v": None}, r"has no array v, expected q, k and v; it has k, q, scale$"),
        ({"k": "cut:1"}, r"k has 95 tokens on axis 1, q has 96$"),
        ({"k": "cut:0"}, r"k has 1 layers on axis 0, q has 2$"),
        ({"v": "cut:3"}, r"v has 15 head_dim on axis 3, k has 16$"),
        ({"q": "cut:2"}, r"q has 5 heads on axis 2, expected a multiple of the 2 KV heads of k$"),
        ({"q": "flat"}, r"q has 3 axes, expected 4: \[layers\]\[tokens\]\[heads\]\[head_dim\]$"),
        ({"v": "none"}, r"v has 0 tokens on axis 1, expected 1 or more$"),
        ({"q": "int"}, r"q is int64, expected float16 or float32$"),
        ({"k": "nan"}, r"k is not finite as float16 at layer 1, token 4, head 0, expected numbers$"),
        ({"scale": np.float32(0)}, r"scale is 0.0, expected one number above 0$"),
        ({"scale": np.zeros(2)}, r"scale is \[0.0, 0.0\], expected one number above 0$"),
    ],
)
def test_what_does_not_fit_is_named_with_its_array_and_axis(
    tmp_path: Path, changed: dict[str, Any], complaint: str
) -> None:
    for name, how in list(changed.items()):
        array = captures.arrays()[name]
        if isinstance(how, str):
            what, _, axis = how.partition(":")
            if what == "cut":
                changed[name] = np.delete(array, 0, axis=int(axis))
            elif what == "nan":
                array[1, 4, 0, 2] = np.nan
                changed[name] = array
            else:
                changed[name] = {"flat": array[0], "none": array[:, :0], "int": array.astype(np.int64)}[what]
    path = captures.write(tmp_path / "c.npz", **changed)
    with pytest.raises(ConfigError, match=f"c.npz: {complaint}") as caught:
        read_capture(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_capture_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no zip")
    np.save(tmp_path / "one.npy", np.zeros(3))
    broken = captures.write(tmp_path / "broken.npz")
    broken.write_bytes(broken.read_bytes()[:-400])
    for name, complaint in (
        ("text.npz", "is no .npz that can be read"),
        ("one.npy", "holds one array, expected an .npz with q, k and v"),
        ("broken.npz", "is no .npz that can be read"),
        ("absent.npz", "No such file or directory, expected captured content"),
    ):
        with pytest.raises(ConfigError, match=complaint) as caught:
            read_capture(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_request_longer_than_the_capture_is_named(tmp_path: Path) -> None:
    path = captures.write(tmp_path / "c.npz", **{name: captures.arrays()[name][:, :90] for name in "qkv"})
    with pytest.raises(ConfigError, match=r"^request a has 92 tokens \(prompt and output\), .*c.npz has 90: "):
        prepare(two_requests(), settings(path))


def test_a_model_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    path = captures.write(tmp_path / "c.npz")
    assert prepare(two_requests(num_heads=6), settings(path)).model == ModelConfig(LAYERS, HEADS, KV_HEADS, DIM)
    with pytest.raises(
        ConfigError, match=r"^the trace sets model.num_heads to 8, .*c.npz was captured with 6$"
    ):
        prepare(two_requests(num_heads=8), settings(path))


def test_content_without_a_file_and_another_file_than_the_named_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^content npz names no file, expected a path$"):
        ContentConfig(kind="npz")
    path = captures.write(tmp_path / "c.npz")
    pinned = Settings(content={"kind": "npz", "path": str(path), "sha256": "0" * 64})
    with pytest.raises(ConfigError, match=r"its SHA-256 is \w{16}…, expected 0000000000000000…: another capture$"):
        prepare(two_requests(), pinned)


def test_a_recording_opens_without_the_file_and_says_that_it_is_needed_for_scores(tmp_path: Path) -> None:
    path, recording = captures.write(tmp_path / "c.npz"), tmp_path / "run.rec"
    summary = run_replay(prepare(two_requests(), settings(path)), recording)
    with Timeline(recording) as timeline:
        seen = ContentInspector(timeline.header).scores(0, 85, 1)
        assert seen is not None
        assert seen.mass.sum(axis=1) == pytest.approx(1, abs=1e-5)
    path.unlink()
    with Timeline(recording) as timeline:
        again = summarize_recording(timeline)
        inspector = ContentInspector(timeline.header)
    assert again["digest_matches"]
    assert again["selection"] == summary["selection"]
    assert again["content"]["note"].endswith("K, V and queries can be shown only where that file is")
    assert inspector.scores(0, 85, 1) is None
    assert inspector.why_not.startswith("K, V and queries were captured, their file is needed: ")


def test_a_trace_names_its_capture_beside_itself_and_the_command_line_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pinned = hashlib.sha256(captures.write(tmp_path / "c.npz").read_bytes()).hexdigest()
    trace = {
        "schema": "tinyserve-viz/trace/1",
        "engine": {"block_size": 8, "selection": "snapkv", "budget_blocks": 3, "sinks": 0, "recent": 1},
        "content": {"kind": "npz", "path": "c.npz", "sha256": pinned},
        "requests": [{"prompt_len": 40, "output_len": 4}],
    }
    (tmp_path / "t.json").write_text(json.dumps(trace))
    replay = ["replay", str(tmp_path / "t.json"), "--kernels", "decisions", "--headless", "--quiet", "--json"]
    assert main(replay) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["content"]["path"] == str(tmp_path / "c.npz")
    assert summary["selection"]["policy"] == "snapkv"
    assert summary["selection"]["budget_blocks"] == 3
    assert main([*replay, "--content", f"npz:{captures.write(tmp_path / 'other.npz', scale=np.float32(0.5))}"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["content"]["captured"]["scale"] == 0.5
    assert other["content"]["sha256"] != summary["content"]["sha256"]
    assert main([*replay, "--content", "iid"]) == 0
    assert json.loads(capsys.readouterr().out)["content"]["kind"] == "iid"
