"""What others read of our tables: pandas, polars and jq, where they are installed (`.ci/run` installs them)."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tinyserve_viz.analysis.tables import TABLES
from tinyserve_viz.cli.export import exported


def moment(table: str) -> int | None:
    """A step at which somebody holds blocks; at the end nobody does."""
    return 79 if table == "block_tables" else None


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_pandas_reads_a_table_and_writes_the_same_bytes(table: object, quickstart_recording: Path) -> None:
    pandas = pytest.importorskip("pandas")
    name: str = table.name  # type: ignore[attr-defined]
    data, _ = exported(quickstart_recording, "csv", name, moment(name))
    frame = pandas.read_csv(io.BytesIO(data), dtype_backend="numpy_nullable")
    assert frame.to_csv(index=False, lineterminator="\n").encode() == data
    assert (frame.dtypes == "object").sum() == 0 or name == "summary"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_polars_reads_a_table_and_holds_the_same_values(table: object, quickstart_recording: Path) -> None:
    polars = pytest.importorskip("polars")
    name: str = table.name  # type: ignore[attr-defined]
    rows = json.loads(exported(quickstart_recording, "json", name, moment(name))[0])["rows"]
    frame = polars.read_csv(exported(quickstart_recording, "csv", name, moment(name))[0], infer_schema_length=None)
    again = polars.read_csv(frame.write_csv().encode(), infer_schema_length=None)
    assert frame.equals(again)
    if name != "summary":  # its values are numbers and texts in one column, which a CSV reader takes for text
        assert frame.to_dicts() == rows


def test_jq_reads_what_json_says(quickstart_recording: Path) -> None:
    jq = shutil.which("jq")
    if jq is None:
        pytest.skip("jq is not installed")
    data, _ = exported(quickstart_recording, "json", "requests")
    done = subprocess.run([jq, "[.rows[].hit_tokens] | add"], input=data, capture_output=True, check=True)
    assert int(done.stdout) == 208
