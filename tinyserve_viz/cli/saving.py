"""What the debugger writes and draws of a whole recording: exports named by their file, charts as text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tinyserve_viz.core.errors import ConfigError

_LINES = {"events.jsonl": "jsonl", "mooncake.jsonl": "mooncake", "chrome.json": "chrome"}
_PICTURES = ("png", "svg", "pdf", "html")


class RecordingExporter:
    """Exports of the recording at `path`; every call opens it anew, so it may be used beside a screen."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, name: str, step: int) -> str:
        """Write the export that the file's name says, tables of one moment at `step`; returns what was written.

        Raises:
            TinyserveError: the name says nothing that is known, the file exists, or it cannot be written.
        """
        from tinyserve_viz.trace.write import write_bytes

        if Path(name).exists():
            raise ConfigError(f"{name}: exists already, expected a new name")
        data = self._content(name, step)
        write_bytes(name, data)
        return f"wrote {Path(name).resolve()} ({len(data):,} bytes)"

    def _content(self, name: str, step: int) -> bytes:
        from tinyserve_viz.analysis.tables import TABLES
        from tinyserve_viz.cli.export import exported
        from tinyserve_viz.cli.plot import plotted

        file = Path(name)
        suffix = file.suffix.lower().removeprefix(".")
        if file.name in _LINES:
            return exported(self._path, _LINES[file.name])[0]
        if suffix in _PICTURES:
            return plotted(self._path, file.stem, suffix)
        for table in TABLES:
            if suffix in ("csv", "json") and table.name == file.stem:
                return exported(self._path, suffix, table.name, step if table.of_state else None)[0]
        tables = ", ".join(table.name for table in TABLES)
        raise ConfigError(f"{name}: expected {', '.join(_LINES)}, KIND.png, or TABLE.csv of {tables}")

    def chart(self, kind: str) -> Callable[[int, int], list[str]]:
        """Read the chart of that kind; what is returned draws it in so many columns and lines a panel.

        Raises:
            TinyserveError: there is no such kind, or the recording holds nothing of it.
        """
        from tinyserve_viz.cli.plot import charts_of
        from tinyserve_viz.report.text_chart import as_text

        chart = charts_of(self._path, kind)[0][0]
        return lambda columns, lines: as_text(chart, (columns, lines)).splitlines()
