"""How long a key takes to the painted frame, and the first frame of the quickstart.

    python tests/bench/bench_tui.py TRACE [--limit 500] [--num-blocks 16384]

Drives the app without a terminal at 120×40: a press of a key, the new frame, every line of every panel rendered.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinyserve_viz.cli.inspector import ContentInspector
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.trace import read_trace
from tinyserve_viz.tui.app import Debugger


class Watched(Debugger):
    """Knows when the terminal was last given something to show."""

    painted = spent = 0.0

    def _display(self, screen: Any, renderable: Any) -> None:
        super()._display(screen, renderable)
        self.painted, self.spent = time.perf_counter(), time.process_time()


async def press(app: Watched, key: str) -> tuple[float, float]:
    """Milliseconds from a key's arrival to the last update that it causes, an update then is 60 ms of quiet away; and
    of these the milliseconds of this process's own CPU time, which other processes do not lengthen."""
    started, spent = time.perf_counter(), time.process_time()
    app.simulate_key(key)
    while app.painted < started or time.perf_counter() - app.painted < 0.06:
        await asyncio.sleep(0.002)
        if time.perf_counter() - started > 2:
            break
    return (app.painted - started) * 1e3, (app.spent - spent) * 1e3


def paint(app: Debugger) -> None:
    """Draw every line of every panel, as the screen does when it is updated."""
    for panel in app.query("Panel"):
        for y in range(panel.size.height):
            panel.render_line(y)


async def measure(path: Path) -> None:
    started = time.perf_counter()
    with Timeline(path) as timeline:
        app = Watched(timeline, inspector=ContentInspector(timeline.header))
        async with app.run_test(size=(120, 40)) as pilot:
            app.read_all()
            await pilot.pause()
            print(f"first frame after {time.perf_counter() - started:.2f} s, {timeline.num_events:,} events")
            places = np.random.default_rng(1).integers(200, timeline.num_events - 200, 30).tolist()
            for name, keys in (("event on", "n"), ("event back", "p"), ("step on", "N"), ("step back", "P")):
                times = []
                for place in places:
                    app._go(place)
                    await pilot.pause()
                    times.append(await press(app, keys))
                wall, cpu = zip(*times, strict=True)
                print(
                    f"key, {name}: median {statistics.median(wall):.0f} ms, max {max(wall):.0f} ms; "
                    f"CPU {statistics.median(cpu):.0f} ms, max {max(cpu):.0f} ms"
                )
            times = []
            for place in places:
                start = time.perf_counter()
                app._go(place)
                times.append((time.perf_counter() - start) * 1e3)
            print(f"seek and draw: median {statistics.median(times):.0f} ms, max {max(times):.0f} ms")
            times = []
            for place in places:
                app._go(place)
                start = time.perf_counter()
                app._go(place - 1)
                paint(app)
                times.append((time.perf_counter() - start) * 1e3)
            middle, worst = statistics.median(times), max(times)
            print(f"one event back, frame and every line: median {middle:.0f} ms, max {worst:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trace")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--num-blocks", type=int, default=16_384)
    parser.add_argument("--kernels", default="none", help="decisions: with selections to be scored again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "run.rec")
        settings = Settings(engine={"num_blocks": arguments.num_blocks}, kernels=arguments.kernels)
        run_replay(prepare(read_trace(arguments.trace, limit=arguments.limit), settings), path)
        asyncio.run(measure(path))


if __name__ == "__main__":
    main()
