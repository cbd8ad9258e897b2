"""`plot`: pictures of a recording or of a bench file; `plotted` is what the TUI calls too."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyserve_viz.cli.arguments import add_writing_arguments

if TYPE_CHECKING:
    from types import ModuleType

    from tinyserve_viz.analysis.charts.chart import Chart

FORMS = ("png", "svg", "pdf", "html", "txt")
ALL = "all"
DPI = 150


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plot`."""
    parser.epilog = (
        "examples:\n"
        "  tinyserve-viz plot run.rec                          # the whole replay, as text\n"
        "  tinyserve-viz plot run.rec -o timeline.png\n"
        "  tinyserve-viz plot run.rec --kind latency -o latency.pdf --size 6x5\n"
        "  tinyserve-viz plot run.rec --kind all -o report.html\n"
        "  tinyserve-viz plot bench.json --kind roofline -o roofline.svg\n"
        "  tinyserve-viz plot --kind list"
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="a recording, or a file of `kernels bench --json`")
    add_writing_arguments(
        parser,
        "picture to write: .png, .svg, .pdf, .html or .txt",
        "print the chart as data, or with -o what was written",
    )
    parser.add_argument(
        "--kind",
        metavar="K",
        help="what to draw (default timeline, of a bench file roofline); `list` lists them, `all` makes a page",
    )
    parser.add_argument(
        "--size",
        metavar="WxH",
        type=_size,
        help="inches of a picture (8.5x7); of text, columns x lines a panel (100x16)",
    )
    parser.add_argument("--dpi", metavar="N", type=_dpi, help="dots per inch of a PNG (default 150)")


def run(args: argparse.Namespace) -> int:
    """Draw one chart, or list what can be drawn."""
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.cli.outputs import check_output
    from tinyserve_viz.cli.progress import busy
    from tinyserve_viz.trace.write import write_bytes

    if args.kind == "list":
        given = [f"--{name}" for name in ("output", "size", "dpi", "force") if getattr(args, name)]
        if given:
            raise UsageError(f"tinyserve-viz plot: --kind list draws nothing, without {', '.join(given)}; see --help")
        return _list(args.json)
    if args.file is None:
        raise UsageError("tinyserve-viz plot: the following arguments are required: FILE; see --help")
    form = form_of(args.output)
    if args.kind == ALL and form != "html":
        raise UsageError("tinyserve-viz plot: --kind all makes a page, expected -o OUT.html; see --help")
    if args.dpi is not None and form != "png":
        raise UsageError(f"tinyserve-viz plot: --dpi is for .png, not {form}; see --help")
    if args.json and args.output is None and args.size is not None:
        raise UsageError("tinyserve-viz plot: --json without -o prints data, which has no --size; see --help")
    if args.json and args.output == "-":
        raise UsageError("tinyserve-viz plot: --json and -o - both want stdout; see --help")
    check_output(args.output, args.force)
    with busy(f"plot {args.file}", args.quiet):
        if args.json and args.output is None:
            print(json.dumps({"schema": 1, "chart": as_data(charts_of(Path(args.file), args.kind)[0][0])}))
            return 0
        data = plotted(Path(args.file), args.kind, form, args.size, args.dpi or DPI)
    write_bytes(args.output or "-", data, force=args.force)
    if args.json:
        print(json.dumps({"schema": 1, "output": args.output, "form": form, "bytes": len(data)}))
    return 0


def plotted(
    file: Path, kind: str | None, form: str, size: tuple[float, float] | None = None, dpi: int = DPI
) -> bytes:
    """The chart `kind` of a recording or bench file in one of `FORMS`.

    Raises:
        TinyserveError: no such kind, or the file holds nothing of it.
    """
    charts, left_out = charts_of(file, kind)
    return rendered(charts, left_out, form, file.name, size, dpi)


def rendered(
    charts: list[Chart],
    left_out: list[str],
    form: str,
    name: str,
    size: tuple[float, float] | None = None,
    dpi: int = DPI,
) -> bytes:
    """Charts in one of `FORMS`: all of them on a page called `name`, the first one in any other form."""
    from tinyserve_viz.report.figure import picture
    from tinyserve_viz.report.page import as_page
    from tinyserve_viz.report.text_chart import as_text

    if form == "html":
        title = charts[0].title if len(charts) == 1 else name
        return as_page(title, charts, left_out, size).encode()
    if form == "txt":
        columns = None if size is None else (max(40, round(size[0])), max(8, round(size[1])))
        return as_text(charts[0], columns).encode()
    return picture(charts[0], form, size, dpi)


def charts_of(file: Path, kind: str | None) -> tuple[list[Chart], list[str]]:
    """The charts of that kind (`all`: of every kind), and why others are left out.

    Raises:
        TinyserveError: no such kind, or the file holds nothing of it.
    """
    from tinyserve_viz.analysis.charts import BENCH_CHARTS, CHARTS, STREAM_CHARTS
    from tinyserve_viz.analysis.charts.bench import BenchSource
    from tinyserve_viz.analysis.charts.occupancy import StreamSource
    from tinyserve_viz.analysis.charts.source import RunSource
    from tinyserve_viz.core.errors import ConfigError, RecordingError
    from tinyserve_viz.recording.timeline import Timeline, is_recording

    sources = {"a recording": CHARTS, "a bench file": BENCH_CHARTS, "a recorded KV-event stream": STREAM_CHARTS}
    known = [module.KIND for modules in sources.values() for module in modules]
    if kind not in (None, ALL, *known):
        raise ConfigError(f"unknown kind {kind!r} of plot; known: {', '.join(known)}, all (HTML)")
    try:
        recording = is_recording(file)
    except OSError as error:
        raise RecordingError(f"{file}: {error.strerror}") from None

    def of(what: str) -> tuple[ModuleType, ...]:
        for other, modules in sources.items():
            if other != what and kind in [module.KIND for module in modules]:
                raise ConfigError(f"{file}: is {what}, a plot of kind {kind} is drawn from {other}")
        return sources[what]

    if not recording:
        return _drawn(of("a bench file"), kind, BenchSource(file))
    with Timeline(file) as timeline:
        if timeline.header.stream is not None:
            return _drawn(of("a recorded KV-event stream"), kind, StreamSource(timeline))
        return _drawn(of("a recording"), kind, RunSource(timeline))


def _drawn(modules: tuple[ModuleType, ...], kind: str | None, source: Any) -> tuple[list[Chart], list[str]]:
    from tinyserve_viz.core.errors import TinyserveError

    if kind != ALL:
        module = next(module for module in modules if kind in (None, module.KIND))
        return [module.draw(source)], []
    charts: list[Chart] = []
    left_out: list[str] = []
    reason: TinyserveError | None = None
    for module in modules:
        try:
            charts.append(module.draw(source))
        except TinyserveError as error:
            left_out.append(f"{module.KIND}: {error}")
            reason = error
    if not charts and reason is not None:
        raise reason
    return charts, left_out


def as_data(chart: Chart) -> dict[str, Any]:
    """A chart as plain values; NaN becomes null."""

    def axis(axis: Any) -> dict[str, Any]:
        return {"label": axis.label, "unit": axis.unit, "log": axis.log, "categories": list(axis.categories)}

    def numbers(values: Any) -> list[float | None]:
        return [None if math.isnan(value) else value for value in values.tolist()]

    return {
        "kind": chart.kind,
        "title": chart.title,
        "caption": list(chart.caption),
        "panels": [
            {
                "title": panel.title,
                "x": axis(panel.x),
                "y": axis(panel.y),
                "scale": panel.scale,
                "series": [
                    {"name": s.name, "style": s.style, "x": numbers(s.x), "y": numbers(s.y), "z": numbers(s.z)}
                    for s in panel.series
                ],
            }
            for panel in chart.panels
        ],
    }


def form_of(output: str | None) -> str:
    """The form that the suffix of `output` names; text for stdout.

    Raises:
        ConfigError: no known suffix.
    """
    from tinyserve_viz.core.errors import ConfigError

    if output in (None, "-"):
        return "txt"
    suffix = Path(str(output)).suffix.lower().removeprefix(".")
    if suffix not in FORMS:
        found = f"has suffix .{suffix}" if suffix else "has no suffix"
        raise ConfigError(f"{output}: {found}, a plot is one of {', '.join('.' + form for form in FORMS)}")
    return suffix


def _list(as_json: bool) -> int:
    from tinyserve_viz.analysis.charts import BENCH_CHARTS, CHARTS, STREAM_CHARTS

    if as_json:
        kinds = [
            {"kind": module.KIND, "of": of, "summary": module.SUMMARY}
            for of, modules in (("recording", CHARTS), ("bench", BENCH_CHARTS), ("stream", STREAM_CHARTS))
            for module in modules
        ]
        print(json.dumps({"schema": 1, "kinds": kinds}))
        return 0
    every = (*CHARTS, *BENCH_CHARTS, *STREAM_CHARTS)
    width = max(len(module.KIND) for module in every)
    for module in every:
        print(f"{module.KIND:<{width}}  {module.SUMMARY}")
    return 0


def _size(text: str) -> tuple[float, float]:
    """`8.5x7` as (8.5, 7.0)."""
    first, times, second = text.partition("x")
    try:
        width, height = float(first), float(second)
    except ValueError:
        width = height = 0.0
    if not times or not (2 <= width <= 400 and 2 <= height <= 200):
        raise argparse.ArgumentTypeError(f"{text!r} given, expected width x height such as 8.5x7")
    return width, height


def _dpi(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    if not 20 <= value <= 1200:
        raise argparse.ArgumentTypeError(f"{text!r} given, expected 20 to 1200")
    return value
