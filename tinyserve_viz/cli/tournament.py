"""One trace replayed under several configurations: metrics side by side, and where each parts from the first."""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyserve_viz.cli.arguments import content_of, different, load_trace, whole_number
from tinyserve_viz.core.config import (
    ALLOCATORS,
    COMPACTIONS,
    EVICTIONS,
    ORACLE_EVICTIONS,
    REDUCTIONS,
    SELECTION_HEADS,
    SELECTIONS,
)

if TYPE_CHECKING:
    from tinyserve_viz.analysis.first_decision import DecisionKeys, DifferingDecision
    from tinyserve_viz.cli.session import Settings
    from tinyserve_viz.recording.header import Header
    from tinyserve_viz.trace import Trace

FINDING = 1
MOST = 64  # replays in one comparison


@dataclass(frozen=True, slots=True)
class Axis:
    """An option that takes a list; `field` is what it sets in the engine's configuration, `words` how it is called."""

    option: str
    field: str
    parse: Callable[[str], tuple[Any, ...]]
    metavar: str
    help: str
    words: str = "{}"

    @property
    def name(self) -> str:
        """Where argparse puts it."""
        return self.option.removeprefix("--").replace("-", "_")


def _names(known: tuple[str, ...], what: str) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        names = tuple(name.strip() for name in text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {what} {name!r}; known: {', '.join(sorted(known))}")
        return different(names, text)

    return parse


def _numbers(low: int) -> Callable[[str], tuple[Any, ...]]:
    one = whole_number(low)
    return lambda text: different(tuple(one(part.strip()) for part in text.split(",")), text)


def _shares(text: str) -> tuple[Any, ...]:
    from tinyserve_viz.cli.replay import ratio

    return different(tuple(ratio(part.strip()) for part in text.split(",")), text)


_SELECTING = ("selection", "ratio", "budget_blocks", "selection_heads", "reduction")  # need the kernels
_EVICTIONS = (*EVICTIONS, *ORACLE_EVICTIONS)
AXES: tuple[Axis, ...] = (
    Axis("--allocator", "allocator", _names(ALLOCATORS, "allocator"), "A,…", f"of {', '.join(ALLOCATORS)}"),
    Axis("--eviction", "eviction", _names(_EVICTIONS, "eviction policy"), "P,…", f"of {', '.join(_EVICTIONS)}"),
    Axis("--selection", "selection", _names(SELECTIONS, "selection policy"), "P,…", f"of {', '.join(SELECTIONS)}"),
    Axis("--ratio", "ratio_permille", _shares, "R,…", "shares of the blocks that a selection may keep, 0.001 to 1"),
    Axis("--budget-blocks", "budget_blocks", _numbers(1), "N,…", "blocks to keep in place of a ratio", "{} kept"),
    Axis("--selection-heads", "selection_heads", _names(SELECTION_HEADS, "choice"), "H,…", "per kv head, or shared"),
    Axis("--reduction", "reduction", _names(REDUCTIONS[1:], "reduction"), "R,…", f"of {', '.join(REDUCTIONS[1:])}"),
    Axis("--compaction", "compaction", _names(COMPACTIONS, "compaction"), "H,…", f"of {', '.join(COMPACTIONS)}"),
    Axis("--block-size", "block_size", _numbers(1), "N,…", "tokens in a block", "blocks of {}"),
    Axis("--num-blocks", "num_blocks", _numbers(1), "N,…", "blocks in the pool", "pool of {:,}"),
    Axis("--max-num-seqs", "max_num_seqs", _numbers(1), "N,…", "sequences that may run at once", "{:,} seats"),
    Axis("--max-batch-tokens", "max_batch_tokens", _numbers(1), "N,…", "tokens of one step", "{:,} tokens a step"),
)


@dataclass(frozen=True, slots=True)
class Configuration:
    """One replay of the comparison: what it sets, and how it is called among the others."""

    label: str
    engine: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """A configuration after its replay."""

    configuration: Configuration
    header: Header
    summary: dict[str, Any]
    keys: DecisionKeys


def given(args: argparse.Namespace) -> list[str]:
    """The options among `AXES` that were given."""
    return [axis.option for axis in AXES if getattr(args, axis.name) is not None]


def configurations(args: argparse.Namespace) -> list[Configuration]:
    """All combinations of the lists, the first values first; a selection without ratio stands once."""
    from tinyserve_viz.analysis.pareto import NOT_BY_SHARE

    axes = [axis for axis in AXES if getattr(args, axis.name) is not None]
    found: dict[str, Configuration] = {}
    for values in itertools.product(*(getattr(args, axis.name) for axis in axes)):
        engine = {axis.field: value for axis, value in zip(axes, values, strict=True)}
        if engine.get("selection") in NOT_BY_SHARE:
            engine.pop("ratio_permille", None)
            engine.pop("budget_blocks", None)
        varied = [axis for axis in axes if axis.field in engine and len(getattr(args, axis.name)) > 1]
        label = ", ".join(_label(axis, engine[axis.field]) for axis in varied or axes[:1])
        found.setdefault(label, Configuration(label, engine))
    return list(found.values())


def _label(axis: Axis, value: Any) -> str:
    return f"{value / 1000:g}" if axis.field == "ratio_permille" else axis.words.format(value)


def run(args: argparse.Namespace) -> int:
    """Replay every configuration, print the table and the differences from the first one."""
    from tinyserve_viz.analysis.pareto import chart, points
    from tinyserve_viz.analysis.side_by_side import as_dict
    from tinyserve_viz.cli.main import UsageError
    from tinyserve_viz.cli.outputs import check_output
    from tinyserve_viz.cli.play import play_all
    from tinyserve_viz.cli.plot import form_of, rendered
    from tinyserve_viz.core.config import as_dict as as_fields
    from tinyserve_viz.core.errors import ConfigError
    from tinyserve_viz.report.side_by_side import as_table, difference_lines
    from tinyserve_viz.trace.write import write_bytes

    if not given(args):
        raise UsageError("tinyserve-viz compare: nothing to compare; give a list, such as --eviction lru,fifo")
    chosen = configurations(args)
    if args.ratio is not None and args.budget_blocks is not None:
        raise UsageError("tinyserve-viz compare: --ratio and --budget-blocks exclude each other; see --help")
    if not 2 <= len(chosen) <= MOST:
        raise UsageError(
            f"tinyserve-viz compare: {len(chosen)} configuration{'s' * (len(chosen) != 1)}, "
            f"expected 2 to {MOST}; give a list, such as --eviction lru,fifo"
        )
    form = "txt" if args.plot is None else form_of(args.plot)
    if args.plot is not None and _kernels(args) == "none":
        raise UsageError(
            "tinyserve-viz compare: --plot draws what selections keep: compare --selection or --ratio; see --help"
        )
    if args.force and args.plot is None:
        raise UsageError("tinyserve-viz compare: --force replaces what --plot writes, which is not given; see --help")
    check_output(args.plot, args.force)
    trace = load_trace(args)
    headers = _prepared(trace, chosen, args)
    replays = play_all([one.label for one in chosen], headers, args.jobs, args.quiet)
    played = [Played(*parts) for parts in zip(chosen, headers, *zip(*replays, strict=True), strict=True)]
    first = played[0]
    differences = differing_decisions(first, played[1:])
    labels = [one.configuration.label for one in played]
    kept = points(labels, [one.summary for one in played])
    picture = chart(kept, _facts(first)) if kept else None
    if args.plot is not None:
        if picture is None:
            raise ConfigError("--plot draws what selections keep: compare --selection or --ratio")
        write_bytes(args.plot, rendered([picture], [], form, trace.name), force=args.force)
    if args.json:
        entries = [
            {
                "label": one.configuration.label,
                "settings": one.configuration.engine,
                "digest": one.summary["digest"],
                "metrics": as_dict(one.summary),
                "first_difference": None if found is None else found.as_dict(),
            }
            for one, found in zip(played, [None, *differences], strict=True)
        ]
        front = [as_fields(point) for point in kept]
        about = {name: first.summary[name] for name in ("trace", "backend", "device", "kernels_run", "content")}
        print(json.dumps({"schema": 1, **about, "configurations": entries, "pareto": front}))
    else:
        ran, content = first.summary["kernels_run"], first.header.content.describe()
        with_kernels = "no kernels" if ran == "none" else f"kernels {ran} on {first.summary['backend']}, {content}"
        count = first.summary["trace"]["num_requests"]
        trace_line = f"{trace.name} ({trace.format}, {count:,} requests), {with_kernels}"
        print("\n".join([trace_line, "", *as_table(labels, [one.summary for one in played]), ""]))
        for label, found in zip(labels[1:], differences, strict=True):
            print("\n".join(difference_lines(found, labels[0], label)))
        if picture is not None and len(kept) > 1:
            best = ", ".join(point.label for point in kept if point.on_front)
            print(f"\nno other keeps more attention mass while reading as little: {best}\n")
            print(rendered([picture], [], "txt", trace.name).decode(), end="")
    return FINDING if args.fail_on_diff and any(found is not None for found in differences) else 0


def _facts(first: Played) -> list[str]:
    """What the caption of a plot says of all the replays."""
    origin, header = first.header.origin, first.header
    trace = origin["trace"]
    return [
        f"trace {trace['name']} ({trace['format']}, {trace['num_requests']:,} requests)",
        f"content {header.content.describe()}, blocks of {header.engine.block_size} tokens",
        f"backend {origin['backend']}, {origin['device']}",
        f"tinyserve-viz {origin['tool']}",
    ]


def _kernels(args: argparse.Namespace) -> str:
    """Which kernels the replays run: all where selections are compared, unless something else was asked for."""
    selects = any(getattr(args, name) is not None for name in _SELECTING)
    return str(args.kernels or ("all" if selects else "none"))


def _settings(configuration: Configuration, args: argparse.Namespace) -> Settings:
    from tinyserve_viz.cli.session import Settings

    return Settings(
        engine=configuration.engine,
        content=content_of(args),
        profile=args.profile,
        arrivals=args.arrivals,
        kernels=_kernels(args),
        oracles=True,
        backend=args.backend,
        # What was lost needs the dense form and the selected one, no other.
        attention="query-aware" if _kernels(args) == "all" else None,
    )


def _prepared(trace: Trace, chosen: Sequence[Configuration], args: argparse.Namespace) -> list[Header]:
    """What is known before the first replay; refuses what would take hours unless it was insisted on."""
    from tinyserve_viz.cli.session import ALL_KERNELS_UP_TO_TOKENS, num_tokens, prepare_as_told
    from tinyserve_viz.core.errors import ConfigError

    headers = [prepare_as_told(trace, _settings(configuration, args)) for configuration in chosen]
    tokens = num_tokens(headers[0].workload)
    insisted = args.kernels is not None or tokens <= ALL_KERNELS_UP_TO_TOKENS
    if _kernels(args) == "all" and not insisted and headers[0].origin["backend"] == "numpy":
        raise ConfigError(
            f"{trace.name} has {tokens:,} tokens; comparing selections runs every kernel on the NumPy reference, which "
            f"takes hours from {ALL_KERNELS_UP_TO_TOKENS:,} on: use --limit N, or insist with --kernels all"
        )
    return headers


def differing_decisions(first: Played, others: Sequence[Played]) -> list[DifferingDecision | None]:
    """Where each of `others` first decides differently from `first`, in words.

    Nothing was recorded so far: both are replayed again, up to that step.
    """
    from tinyserve_viz.analysis.first_decision import explain, first_difference

    places = [first_difference(first.keys, other.keys) for other in others]
    known = [first.keys.event_of(place) for place in places if place is not None]
    if not known:
        return [None] * len(others)
    found: list[DifferingDecision | None] = []
    with (
        tempfile.TemporaryDirectory(prefix="tinyserve-compare-") as folder,
        _replayed_to(first.header, max(known), Path(folder, "first.rec")) as ours,
    ):
        for number, (other, place) in enumerate(zip(others, places, strict=True)):
            if place is None:
                found.append(None)
                continue
            events = first.keys.event_of(place), other.keys.event_of(place)
            with _replayed_to(other.header, events[1], Path(folder, f"{number}.rec")) as theirs:
                found.append(explain(place, ours, events[0], theirs, events[1]))
    return found


def _replayed_to(header: Header, event: int, path: Path) -> Any:
    """A recording of the replay that holds event number `event`, opened."""
    from tinyserve_viz.cli.session import run_replay
    from tinyserve_viz.recording.timeline import Timeline

    seen = 0

    def count(_step: int, _event: Any) -> None:
        nonlocal seen
        seen += 1

    run_replay(header, path, extra_sinks=(count,), should_stop=lambda: seen > event)
    return Timeline(path)
