"""The summary of a replay, as one JSON object (schema 1) and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinyserve_viz.analysis.fragmentation import cost_in_words
from tinyserve_viz.analysis.metrics import Metrics
from tinyserve_viz.analysis.sentences import count, duration
from tinyserve_viz.core.check import Violation
from tinyserve_viz.core.config import as_dict
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.recording.header import Header

SCHEMA = 1


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What is known when a replay is over (or was read back from a recording)."""

    header: Header
    metrics: Metrics
    state: CacheState
    num_checked: int
    violations: list[Violation]
    digest: str | None
    wall_s: float
    num_events: int


def summarize(outcome: Outcome) -> dict[str, Any]:
    """The object that `replay --headless --json` prints; ratios are null where nothing was there to measure."""
    header, metrics = outcome.header, outcome.metrics
    origin = header.origin
    return {
        "schema": SCHEMA,
        "trace": origin["trace"],
        "profile": origin["profile"],
        "arrivals": origin["arrivals"],
        "backend": origin["backend"],
        "device": origin["device"],
        "kernels_run": origin["kernels_run"],
        "content": {**as_dict(header.content), "description": header.content.describe()},
        "config": {
            "engine": as_dict(header.engine),
            "model": as_dict(header.model),
            "rules": as_dict(header.rules),
        },
        "steps": metrics.steps,
        "events": outcome.num_events,
        "wall_s": round(outcome.wall_s, 6),
        "virtual_time_s": metrics.time_us / 1e6,
        **metrics.as_dict(outcome.state),
        "compaction": metrics.compaction(header.model, origin.get("copy_bandwidth")),
        "selection": metrics.selection(),
        "kernels": metrics.kernels(),
        "invariants": {
            "checked": outcome.num_checked,
            "violations": len(outcome.violations),
            "first_violations": [
                {"step": v.step, "invariant": v.invariant, "message": v.message} for v in outcome.violations[:10]
            ],
        },
        "digest": outcome.digest,
    }


def as_text(summary: dict[str, Any]) -> str:
    """The summary for a reader: one line a topic, values with their units."""
    engine = summary["config"]["engine"]
    requests, blocks, prefix = summary["requests"], summary["blocks"], summary["prefix"]
    use, frag, checks = summary["utilization"], summary["fragmentation"], summary["invariants"]
    trace = summary["trace"]
    misses = ", ".join(f"{name} {count:,}" for name, count in prefix["misses"].items() if count)
    lines = [
        (
            "trace",
            f"{trace['name']} ({trace['format']}, {trace['num_requests']:,} requests, arrivals {summary['arrivals']})",
        ),
        (
            "replay",
            f"profile {summary['profile']}, {engine['allocator']} allocator, eviction {engine['eviction']}, "
            f"{blocks['num_blocks']:,} blocks of {blocks['block_size']} tokens",
        ),
        (
            "ran",
            f"{summary['steps']:,} steps, {summary['events']:,} events in {summary['wall_s']:.2f} s "
            f"({summary['virtual_time_s']:,.1f} s of simulated time)",
        ),
        (
            "backend",
            f"{summary['backend']}, kernels {summary['kernels_run']}, content {summary['content']['description']}",
        ),
        (
            "requests",
            f"{requests['completed']:,} completed, {requests['preemptions']:,} preemptions, "
            f"{requests['rejected']:,} rejected, {requests['cancelled']:,} cancelled",
        ),
        (
            "blocks",
            f"peak {blocks['peak_used']:,} used, {blocks['allocations']:,} allocations, "
            f"{blocks['evictions']:,} evictions, "
            f"{blocks['copies_on_write']:,} copies on write, {blocks['leaked']:,} leaked",
        ),
        (
            "prefix cache",
            f"{prefix['hit_tokens']:,} of {prefix['prompt_tokens']:,} prompt tokens hit "
            f"({_percent(prefix['token_hit_rate'])}); misses: {misses or 'none'}",
        ),
        (
            "memory",
            f"decode utilization {_percent(use['decode'])}, physical {_percent(use['physical'])}, "
            f"waste {_percent(use['waste'])}, pool in use {_percent(use['mean'])} on average",
        ),
        (
            "fragmentation",
            f"at the end: internal {_percent(frag['internal'])}, external {_percent(frag['external'])}, "
            f"{frag['num_free_runs']:,} runs of free blocks, longest {frag['longest_free_run']:,}",
        ),
        ("compaction", _compaction_line(summary)),
        ("invariants", f"{checks['checked']:,} checked, {checks['violations']:,} violated"),
        ("digest", summary["digest"] or "none"),
    ]
    if summary.get("complete") is False:
        lines.insert(0, ("INCOMPLETE", "interrupted; this is what was recorded up to the last committed step"))
    if summary["selection"] is not None:
        lines[-2:-2] = _selection_lines(summary)
    width = max(len(name) for name, _ in lines)
    text = [f"{name:<{width}}  {value}" for name, value in lines]
    text += [
        f"{'':<{width}}  VIOLATED {v['invariant']} at step {v['step']}: {v['message']}"
        for v in checks["first_violations"]
    ]
    return "\n".join(text)


def _compaction_line(summary: dict[str, Any]) -> str:
    found = summary["compaction"]
    cost = cost_in_words(summary["config"]["engine"]["allocator"])
    if found["rule"] == "off":
        return f"off; {cost}"
    verdicts = ", ".join(f"{number} × {verdict}" for verdict, number in found["verdicts"].items())
    text = f"{found['rule']}, {count(found['weighed'], 'plan')} weighed{f': {verdicts}' if verdicts else ''}"
    if found["moves"]:
        copy = found["copy_bandwidth"]
        text += f"; {count(found['moves'], 'block')} moved, {found['bytes']:,} bytes"
        if copy:
            text += f", {duration(found['predicted_us'])} predicted by {copy['of']} at {copy['gb_per_s']:.1f} GB/s"
        spent = [kernel for kernel in summary["kernels"] if kernel["name"] == "memory_compaction"]
        title = "NumPy reference" if summary["backend"] == "numpy" else "measured"
        text += "".join(f", {duration(kernel['total_us'])} taken ({title})" for kernel in spent)
    return f"{text}; {cost}"


def _selection_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    chosen, kernels = summary["selection"], summary["kernels"]
    ratio = "" if chosen["ratio"] is None else f", ratio {chosen['ratio']:g}"
    mass, error = chosen["retained_mass"], chosen["output_error"]
    kept = (
        "attention did not run"
        if mass is None
        else (
            f"attention mass retained {mass['mean']:.4f} on average, {mass['min']:.4f} at worst; "
            f"output error {error['mean']:.4f} on average, {error['max']:.4f} at worst"
        )
    )
    title = "NumPy reference, wall time" if summary["backend"] == "numpy" else summary["device"]
    slowest = sorted(kernels, key=lambda kernel: -kernel["total_us"])[:4]
    times = ", ".join(f"{kernel['name']} {kernel['total_us'] / 1e3:,.1f} ms" for kernel in slowest)
    return [
        (
            "selection",
            f"{chosen['policy']}{ratio}: {_percent(chosen['read_share'])} of the K/V read, all of it resident; {kept}",
        ),
        (
            "levels",
            f"{chosen['levels']['raised']:,} raised, {chosen['levels']['lowered']:,} lowered",
        ),
        ("kernels", f"({title}) {sum(k['calls'] for k in kernels):,} calls; most time in {times}"),
    ]


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None else f"{100 * ratio:.2f} %"
