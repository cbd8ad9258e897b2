"""`export`: what a recording (or a bench file) holds, in the formats that other tools read."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tinyserve_viz.cli.arguments import add_writing_arguments, columns_by_lines, whole_number

if TYPE_CHECKING:
    from tinyserve_viz.analysis.tables import Table
    from tinyserve_viz.recording.timeline import Timeline

# How a file of each format may end; the first format with a suffix is what the suffix alone asks for.
_SUFFIXES = {
    "csv": (".csv",),
    "json": (".json",),
    "jsonl": (".jsonl",),
    "chrome": (".json",),
    "mooncake": (".jsonl",),
    "svg": (".svg",),
}
FORMATS = tuple(_SUFFIXES)
_DEFAULT_TABLE = "steps"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz export run.rec --table sequences -o sequences.csv\n"
        "  tinyserve-viz export run.rec --table summary --format json | jq '.rows[].name'\n"
        "  tinyserve-viz export run.rec --format jsonl --sentences -o events.jsonl\n"
        "  tinyserve-viz export run.rec --format chrome -o run.trace.json    # opens in ui.perfetto.dev\n"
        "  tinyserve-viz export run.rec --format mooncake -o again.jsonl\n"
        "  tinyserve-viz export run.rec --format svg --at 79 -o screen.svg\n"
        "  tinyserve-viz export --table list\n"
        "The formats are described in docs/export.md, the events in docs/events.md."
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="a recording, or for csv and json a bench file")
    add_writing_arguments(parser, "file to write (default: stdout)", "print what was written as one JSON object")
    parser.add_argument(
        "--format", choices=FORMATS, help="csv or json: a table · jsonl: all events · chrome: Perfetto · mooncake: the "
        "trace again · svg: the screen (default: by the suffix of OUT, else csv)"
    )  # fmt: skip
    parser.add_argument("--table", metavar="NAME", help="which table (default steps); `list` lists them with columns")
    parser.add_argument(
        "--at", type=whole_number(0), metavar="STEP", help="moment of svg, blocks and block_tables (default: the end)"
    )
    parser.add_argument("--size", metavar="WxH", type=columns_by_lines, help="size of the svg (default 120x40)")
    parser.add_argument("--sentences", action="store_true", help="with jsonl: say in words what each event did and why")


def run(args: argparse.Namespace) -> int:
    """Write one export, or list the tables."""
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.cli.outputs import check_output
    from tinyserve_viz.cli.progress import busy
    from tinyserve_viz.trace.write import write_bytes

    if args.table == "list":
        useless = ("output", "format", "at", "size", "sentences", "force")
        if named := ", ".join(f"--{name}" for name in useless if getattr(args, name)):
            raise UsageError(f"tinyserve-viz export: --table list writes nothing, without {named}; see --help")
        return _list(args.json)
    if args.file is None:
        raise UsageError("tinyserve-viz export: the following arguments are required: FILE; see --help")
    if args.json and args.output in (None, "-"):
        raise UsageError("tinyserve-viz export: --json says what was written, expected -o OUT; see --help")
    form = args.format or _form_of(args.output)
    if args.table is not None and form not in ("csv", "json"):
        raise UsageError(f"tinyserve-viz export: --table is for csv and json, not {form}; see --help")
    for option, given, forms in (
        ("--sentences", args.sentences, ("jsonl",)),
        ("--size", args.size is not None, ("svg",)),
        ("--at", args.at is not None, ("csv", "json", "svg")),
    ):
        if given and form not in forms:
            raise UsageError(f"tinyserve-viz export: {option} is for {', '.join(forms)}, not {form}; see --help")
    check_output(args.output, args.force, f"an export as {form}", _SUFFIXES[form])
    with busy(f"export {args.file}", args.quiet):
        data, notes = exported(Path(args.file), form, args.table, args.at, args.sentences, args.size or (120, 40))
    write_bytes(args.output or "-", data, force=args.force)
    if not args.quiet:
        for note in notes:
            print(f"tinyserve-viz export: {note}", file=sys.stderr)
    if args.json:
        print(json.dumps({"schema": 1, "output": args.output, "format": form, "bytes": len(data), "notes": notes}))
    return 0


def exported(
    file: Path,
    form: str,
    table: str | None = None,
    at: int | None = None,
    sentences: bool = False,
    size: tuple[int, int] = (120, 40),
) -> tuple[bytes, list[str]]:
    """The content of one export, and what a reader of it should be told.

    Raises:
        TinyserveError: no such table, or the file cannot give this.
    """
    from tinyserve_viz.analysis.charts.source import RunSource
    from tinyserve_viz.core.errors import ConfigError, RecordingError
    from tinyserve_viz.recording.timeline import Timeline, is_recording

    try:
        recording = is_recording(file)
    except OSError as error:
        raise RecordingError(f"{file}: {error.strerror}") from None
    if not recording:
        return _bench(file, form, table), []
    with Timeline(file) as timeline:
        if at is not None and at >= timeline.step_of(timeline.num_events):
            raise ConfigError(f"{file}: has steps 0 to {timeline.step_of(timeline.num_events) - 1}, --at is {at}")
        if form == "svg":
            from tinyserve_viz.cli.live import picture

            return picture(file, size, at).encode(), []
        if form == "jsonl":
            from tinyserve_viz.report.event_lines import event_lines

            return b"".join(event_lines(timeline, sentences)), []
        timeline.expect_replay()
        if form == "chrome":
            from tinyserve_viz.report.chrome_trace import chrome_trace

            return b"".join(chrome_trace(RunSource(timeline))), []
        if form == "mooncake":
            from tinyserve_viz.report.mooncake_rows import left_out, mooncake_rows

            lost = ", ".join(f"{what} of {count:,} requests" for what, count in left_out(timeline.header).items())
            notes = [f"not in the Mooncake format and left out: {lost}"] if lost else []
            return b"".join(mooncake_rows(timeline.header)), notes
        return _table(timeline, form, _table_named(table or _DEFAULT_TABLE), at), []


def _table(timeline: Timeline, form: str, table: Table, at: int | None) -> bytes:
    from tinyserve_viz.analysis.charts.source import RunSource
    from tinyserve_viz.core.errors import ConfigError
    from tinyserve_viz.report.table_files import as_csv, as_json

    if at is not None and not table.of_state:
        raise ConfigError(f"table {table.name} shows the whole recording, --at is for tables of one moment")
    end = timeline.num_events if at is None else timeline.first_event_of_step(at + 1)
    source = RunSource(timeline)
    rows = table.rows(source, timeline.seek(end))
    if form == "csv":
        return as_csv(table.columns, rows)
    origin = {"origin": timeline.header.origin, "digest": timeline.digest}
    return as_json(table.name, origin, table.columns, rows)


def _bench(file: Path, form: str, table: str | None) -> bytes:
    import msgspec

    from tinyserve_viz.analysis.charts.bench import BenchRow, BenchSource
    from tinyserve_viz.core.errors import ConfigError
    from tinyserve_viz.report.table_files import as_csv, as_json

    bench = BenchSource(file, all_rows=True)
    if form not in ("csv", "json") or table not in (None, "bench"):
        raise ConfigError(f"{file}: is a bench file, which exports as csv or json with one table, bench")
    columns = ("operation", "implementation", "shape", "us", "useful_gb_per_s", "useful_bytes", "spread_ratio",
               "timed_by", "note", "provenance", "baseline", "error")  # fmt: skip
    assert len(columns) == len(BenchRow.__struct_fields__)
    rows = [msgspec.structs.astuple(row) for row in bench.rows]
    if form == "csv":
        return as_csv(columns, rows)
    return as_json("bench", {"device": bench.file.device, "peaks_gb_per_s": bench.file.peaks}, columns, rows)


def _table_named(name: str) -> Table:
    from tinyserve_viz.analysis.tables import TABLES
    from tinyserve_viz.core.errors import ConfigError

    for table in TABLES:
        if table.name == name:
            return table
    raise ConfigError(f"unknown table {name!r}; known: {', '.join(table.name for table in TABLES)}")


def _form_of(output: str | None) -> str:
    """The format that the suffix of `output` names; csv where there is none."""
    from tinyserve_viz.core.errors import ConfigError

    suffix = "" if output is None else Path(output).suffix.lower()
    if suffix in ("", "."):
        return "csv"
    for form, suffixes in _SUFFIXES.items():
        if suffix in suffixes:
            return form
    known = ", ".join(dict.fromkeys(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes))
    raise ConfigError(f"{output}: has suffix {suffix}, an export ends in one of {known}")


def _list(as_json: bool) -> int:
    from tinyserve_viz.analysis.tables import TABLES

    if as_json:
        tables = [{"table": t.name, "summary": t.summary, "columns": t.columns} for t in TABLES]
        print(json.dumps({"schema": 1, "tables": tables}))
        return 0
    for table in TABLES:
        print(f"{table.name}: {table.summary}\n    {', '.join(table.columns)}")
    return 0
