"""Every kind of chart in every form: complete axes and captions, well-formed files, the same bytes again."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tinyserve_viz.analysis.charts import BENCH_CHARTS, CHARTS
from tinyserve_viz.analysis.charts.bench import BenchSource
from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series
from tinyserve_viz.analysis.charts.source import RunSource
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.report.figure import picture
from tinyserve_viz.report.page import as_page, panel_csv
from tinyserve_viz.report.text_chart import as_text

KINDS = [module.KIND for module in (*CHARTS, *BENCH_CHARTS)]

BENCH = """{"device": "a test's device", "peaks": {"copy": 2890.0, "read": 3100.0}, "clocks": "1980 MHz", "rows": [
  {"op": "attention", "impl": "peer", "shape": "b8", "us": 100.0, "gbs": 1300.0, "bytes": 130e6, "how": "graph"},
  {"op": "attention", "impl": "ours", "shape": "b8", "us": 50.0, "gbs": 860.0, "bytes": 43e6, "how": "graph"},
  {"op": "write", "impl": "ours", "shape": "t64", "error": "out of memory"}]}"""


@pytest.fixture(scope="module")
def charts(quickstart_recording: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chart]:
    bench = tmp_path_factory.mktemp("bench") / "bench.json"
    bench.write_text(BENCH)
    with Timeline(quickstart_recording) as timeline:
        source = RunSource(timeline)
        drawn = [module.draw(source) for module in CHARTS]
    drawn += [module.draw(BenchSource(bench)) for module in BENCH_CHARTS]
    return {chart.kind: chart for chart in drawn}


@pytest.mark.parametrize("kind", KINDS)
def test_every_axis_says_what_it_counts_and_every_caption_where_it_comes_from(
    kind: str, charts: dict[str, Chart]
) -> None:
    chart = charts[kind]
    assert chart.panels
    for panel in chart.panels:
        assert panel.x.label
        assert panel.y.label or panel.y.categories
        assert panel.title
        assert panel.series
        assert all(len(s.x) or s.style == "level" for s in panel.series)
    caption = " · ".join(chart.caption)
    assert any(sign in caption for sign in "●◐○")
    if kind in ("roofline", "speed-up"):
        assert "a test's device" in caption
        assert "1980 MHz" in caption
    else:
        assert "trace quickstart" in caption
        assert "x86_64 CPU" in caption or "CPU" in caption
        assert re.search(r"digest [0-9a-f]{16}", caption)
        assert ("NumPy reference" in caption) == kind.startswith(("kernel", "timeline"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_png_is_as_large_as_asked_and_the_same_again(kind: str, charts: dict[str, Chart]) -> None:
    data = picture(charts[kind], "png", (6, 5), 40)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (240, 200)
    assert picture(charts[kind], "png", (6, 5), 40) == data


@pytest.mark.parametrize("kind", KINDS)
def test_svg_and_pdf_are_well_formed_and_carry_the_caption(kind: str, charts: dict[str, Chart]) -> None:
    chart = charts[kind]
    svg = picture(chart, "svg")
    assert picture(chart, "svg") == svg
    texts = [text for text in ET.fromstring(svg).itertext() if text.strip()]
    assert chart.title in texts
    assert " · ".join(chart.caption) in texts
    pdf = picture(chart, "pdf")
    assert pdf[:5] == b"%PDF-"
    assert pdf.rstrip().endswith(b"%%EOF")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "xlink:href"):
                self.links.append(value or "")


def test_a_page_of_all_charts_needs_no_other_file_and_names_nothing_twice(charts: dict[str, Chart]) -> None:
    page = as_page("all <of it>", list(charts.values()), ["latency: nothing <finished>"])
    tags = Tags()
    tags.feed(page)
    assert len(set(tags.ids)) == len(tags.ids)
    assert set(charts) <= set(tags.ids)
    assert all(link.startswith(("#", "data:")) for link in tags.links)
    assert {link[1:] for link in tags.links if link.startswith("#")} <= set(tags.ids)
    assert "<script" not in page
    assert 'fill="#e69f00"' in page  # colours look like references, and are none
    assert all(re.fullmatch("[0-9a-f]{6}", color) for color in re.findall(r'(?:fill|stroke)="#([^"]*)"', page))
    assert "all &lt;of it&gt;" in page
    assert "latency: nothing &lt;finished&gt;" in page


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(100, 16), (60, 9)])
def test_text_keeps_to_its_width_and_names_axes_and_series(
    kind: str, size: tuple[int, int], charts: dict[str, Chart]
) -> None:
    text = as_text(charts[kind], size)
    squeezed = " ".join(text.split())
    lines = [line for line in text.splitlines() if "╵" not in line]
    assert max(map(len, lines)) <= size[0] + 25  # legend entries and the scale of a heat map are not broken
    assert any("┤" in line for line in lines)
    for panel in charts[kind].panels:
        assert panel.title in text
        assert panel.x.text in text
        assert panel.y.text in text
        if not panel.y.categories:
            assert all(s.name in squeezed for s in panel.series)
    assert " ".join(" · ".join(charts[kind].caption).split()) in squeezed


def test_a_step_is_drawn_before_its_number_and_a_count_after_it() -> None:
    def rows(style: str) -> list[str]:
        line = series("s", style, [0, 1, 2], [0, 1, 1])
        panel = Panel("p", Axis("t", limits=(0, 2)), Axis("y", limits=(0, 1)), (line,))
        text = as_text(Chart("k", "c", (panel,), ("x",)), (44, 12))
        return [line for line in text.splitlines() if line.endswith("│")]

    step, hold = rows("step"), rows("hold")
    assert step[0].count("●") > 35  # at 1 from the first place on
    assert 15 < hold[0].count("●") < 25  # at 1 from the middle on


def test_the_numbers_drawn_come_along_as_csv() -> None:
    heat = series("k", "heat", [0, 1, 2], [0, 1], z=[[1, 2], [np.nan, 4]])
    named = Panel("p", Axis("time", "s"), Axis("", categories=("a", "b, c")), (heat,), "µs a step")
    assert panel_csv(named).splitlines() == [
        "series,time (s),row,µs a step",
        "k,0,a,1",
        "k,1,a,2",
        'k,0,"b, c",',
        'k,1,"b, c",4',
    ]
    plain = Panel("p", Axis("time", "s"), Axis("pool", "blocks"), (series("used", "step", [0.5], [7]),))
    assert panel_csv(plain) == "series,time (s),pool (blocks),length\nused,0.5,7,\n"


def test_a_name_with_dollars_or_foreign_script_is_drawn_as_it_is() -> None:
    panel = Panel("$x_1$ 漢字", Axis("t"), Axis("y"), (series("$a$", "line", [0, 1], [0, 1]),))
    assert picture(Chart("k", "cost $ of $", (panel,), ("trace $n$",)), "png", (4, 3), 40)[:4] == b"\x89PNG"


def test_small_multiples_of_one_value_or_none_do_not_fail() -> None:
    empty = Panel("p", Axis("t"), Axis("y", log=True), (series("zero", "line", [0, 1], [0, np.nan]),))
    chart = Chart("k", "c", (empty,), ("x",))
    assert picture(chart, "png", (4, 3), 40)[:4] == b"\x89PNG"
    assert "zero" not in as_text(chart)  # nothing of it can be drawn
