"""`profile` with an ncu of our own: how it is called and how its table is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyserve_viz.cli import on_gpu, profile
from tinyserve_viz.cli.main import main
from tinyserve_viz.core import toolkit
from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels import cuda_backend

ROW = {"op": "block-copy", "impl": "fused_block_copy", "shape": "llama3-8b blocks=256 x 64 KiB", "form": "",
       "launches": ["fused_block_copy_check", "fused_block_copy"]}  # fmt: skip
METRICS = [metric for metric, _ in profile.METRICS.values()]
TABLE = "\n".join([
    "==PROF== Connected to process 7",
    '"ID","Kernel Name",' + ",".join(f'"{metric}"' for metric in METRICS),
    '"","",' + ",".join('"unit"' for _ in METRICS),
    '"0","fused_block_copy_check",' + ",".join(f'"{number}"' for number in (2048, 1, 2, 3, 4, 5, 16, 0.01, "n/a")),
    '"1","fused_block_copy(void)",' + ",".join(f'"{number}"' for number in
                                               ("17,408", "16,777,216", 2e6, 71.5, 9.9, 88, 40, 1.9, 16)),
])  # fmt: skip


def test_the_table_is_read_in_our_units() -> None:
    check, copy = profile.read_csv(TABLE, [ROW])
    assert (check.entry, copy.entry, copy.shape) == ("fused_block_copy_check", "fused_block_copy", ROW["shape"])
    assert check.counters["us"] == 2.048
    assert check.counters["sectors_per_load"] is None
    assert copy.counters == pytest.approx(
        {"us": 17.408, "dram_read_mb": 16.777216, "dram_write_mb": 2.0, "dram_pct": 71.5, "sm_pct": 9.9,
         "occupancy_pct": 88, "registers": 40, "waves": 1.9, "sectors_per_load": 16}
    )  # fmt: skip
    lines = list(profile.table([check, copy]))
    assert lines[0].split()[:4] == ["launch", "shape", "us", "dram_read_mb"]
    assert lines[1].endswith("–")


def test_a_table_of_other_launches_is_refused() -> None:
    with pytest.raises(KernelError, match=r"^ncu saw 2 launches, 1 were made$"):
        profile.read_csv(TABLE, [ROW | {"launches": ["fused_block_copy"]}])


class Gpu:
    name, arch = "NVIDIA H100", "sm_90"


@pytest.fixture
def ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ncu"
    path.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
while [ "$1" != --log-file ]; do shift; done
cat {tmp_path}/table.csv > "$2"
echo '{json.dumps(ROW)}'
""",
        encoding="utf-8",
    )
    path.chmod(0o755)
    (tmp_path / "table.csv").write_text(TABLE, encoding="utf-8")
    monkeypatch.setattr(cuda_backend, "gpu", Gpu)
    monkeypatch.setattr(on_gpu, "compiled", lambda *_: None)
    monkeypatch.setattr(toolkit, "find_program", lambda _name: path)
    return path


def test_one_launch_a_row_is_profiled_with_the_clocks_left_alone(
    ncu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "--kernel", "fused_block_copy", "--shape", "blocks=256", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["device"], len(found["launches"])) == (1, "NVIDIA H100", 2)
    assert found["metrics"]["us"] == "gpu__time_duration.sum"
    call = (tmp_path / "calls").read_text()
    assert "--profile-from-start off --clock-control none" in call
    assert call.strip().endswith("-m tinyserve_viz.kernels.bench.once quick blocks=256 fused_block_copy")
    assert main(["profile", "--kernel", "fused_block_copy", "-o", "x.ncu-rep"]) == 0
    assert "--set full --export x.ncu-rep" in (tmp_path / "calls").read_text()


def test_counters_that_only_administrators_may_read_are_said_to_be_so(
    ncu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.csv").write_text("==ERROR== ERR_NVGPUCTRPERM - no permission", encoding="utf-8")
    assert main(["profile", "--kernel", "fused_block_copy"]) == 2
    assert capsys.readouterr().err.startswith("tinyserve-viz: the driver lets administrators alone read counters: ")


def test_no_row_with_that_shape_is_an_error(ncu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ncu.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    assert main(["profile", "--kernel", "fused_block_copy", "--shape", "nowhere"]) == 2
    assert "no row has that kernel and shape" in capsys.readouterr().err
