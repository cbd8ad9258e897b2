"""The summary of a replay, as one JSON object (schema 1) and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinyserve_viz.analysis.fragmentation import cost_in_words
from tinyserve_viz.analysis.metrics import Metrics
from tinyserve_viz.analysis.quality import verdict
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
    no_digest: str = ""  # why there is none


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
        "fallback": origin.get("fallback") or None,
        "kernels_run": origin["kernels_run"],
        "kernels_why": origin.get("kernels_why", ""),
        "content": {
            **as_dict(header.content),
            "description": header.content.describe(),
            "captured": origin.get("captured"),
            "note": content_note(header),
        },
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
        "selection": _selection(header, metrics),
        "kernels": metrics.kernels((origin.get("copy_bandwidth") or {}).get("gb_per_s")),
        "copy_bandwidth": origin.get("copy_bandwidth"),
        "host": metrics.host(),
        "invariants": {
            "checked": outcome.num_checked,
            "violations": len(outcome.violations),
            "first_violations": [
                {"step": v.step, "invariant": v.invariant, "message": v.message} for v in outcome.violations[:10]
            ],
        },
        "digest": outcome.digest,
        "digest_note": outcome.no_digest or None,
    }


def _selection(header: Header, metrics: Metrics) -> dict[str, Any] | None:
    """The section `selection`: what was asked for, on which content, and what came of it, in numbers and words."""
    section = metrics.selection()
    if section is None:
        return None
    rates, kind = section["hit_rates"], header.content.kind
    return {
        **section,
        "settings": header.origin.get("selection"),
        "content": header.content.describe(),
        "verdict": verdict(section["policy"], kind, rates["selection_recall"], section["chance_recall"]),
    }


def content_note(header: Header) -> str:
    """What K, V and queries stand for, and what is needed to see them again."""
    content = header.content
    if content.kind == "npz":
        return (
            f"captured: token i of every sequence is token i of {content.path} (SHA-256 {content.sha256}); "
            "K, V and queries can be shown only where that file is"
        )
    if content.kind == "iid":
        return "noise: the control, in which no block says anything about its tokens"
    return "generated: keys in clusters with locality and attention sinks, declared and seeded, not captured"


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
            f"{summary['backend']} on {summary['device']}{_fallback(summary)}, kernels {summary['kernels_run']}"
            f"{_why_none(summary)}, content {summary['content']['description']}",
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
        ("digest", summary["digest"] or f"none: {summary['digest_note']}"),
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
    mass, error = chosen["retained_mass"], chosen["output_error"]
    if mass is None:
        kept = "attention did not run"
    else:
        oracle = "" if mass["oracle_mean"] is None else f" (oracle at the same budget {mass['oracle_mean']:.4f})"
        kept = f"attention mass retained {mass['mean']:.4f} on average{oracle}, {mass['min']:.4f} at worst"
    if error is not None:
        kept += f"; output error {error['mean']:.4f} on average, {error['max']:.4f} at worst"
    slowest = sorted(kernels, key=lambda kernel: -kernel["total_us"])[:4]
    times = ", ".join(_kernel_time(kernel) for kernel in slowest)
    measured = any(kernel["provenance"] == "measured" for kernel in kernels)
    title = f"measured on {summary['device']}" if measured else "NumPy reference, wall time"
    settings = chosen["settings"] or {}
    lines = [
        (
            "selection",
            f"{chosen['policy']}{_budget(chosen)} on content {chosen['content']}: "
            f"{_percent(chosen['read_share'])} of the K/V read; {kept}",
        )
    ]
    if settings.get("warning"):
        lines.append(("", f"WARNING: {chosen['policy']} {settings['warning']}"))
    return [
        *lines,
        *_quality_lines(chosen),
        (
            "levels",
            f"{chosen['levels']['raised']:,} raised, {chosen['levels']['lowered']:,} lowered",
        ),
        *_hot_region_lines(chosen),
        ("kernels", f"({title}) {sum(k['calls'] for k in kernels):,} calls; most time in {times}"),
        *([("host", _host_line(summary))] if measured else []),
    ]


def _budget(chosen: dict[str, Any]) -> str:
    if chosen["budget_blocks"] is not None:
        return f", {chosen['budget_blocks']} blocks a choice"
    return "" if chosen["ratio"] is None else f", ratio {chosen['ratio']:g}"


def _quality_lines(chosen: dict[str, Any]) -> list[tuple[str, str]]:
    rates, bound, meters = chosen["hit_rates"], chosen["bound"], chosen["bytes"]
    lines = []
    if bound is not None:
        lines = [
            ("", chosen["verdict"]),
            (
                "hit rates",
                f"selection recall {_percent(rates['selection_recall'])}, "
                f"temporal reuse {_percent(rates['temporal_reuse'])}, "
                f"next-step recall {_percent(rates['next_step_recall'])}, prefix hit {_percent(rates['prefix_hit'])}, "
                f"hot-region hit {_percent(rates['hot_region_hit'])}",
            ),
            (
                "box bound",
                f"score less largest logit: {bound['mean_slack']:.3g} on average, {bound['least_slack']:.3g} at least; "
                f"broken {bound['broken']:,} of {bound['checked']:,} times",
            ),
        ]
    if meters["dense"]:
        lines.append(
            (
                "bytes",
                f"read {_mebibytes(meters['read'])} + {_mebibytes(meters['to_choose'])} to choose, "
                f"full attention {_mebibytes(meters['dense'])}; resident {_mebibytes(meters['resident_mean'])} "
                f"on average, {_mebibytes(meters['resident_peak'])} at most: a choice frees nothing",
            )
        )
    return lines


def _hot_region_lines(chosen: dict[str, Any]) -> list[tuple[str, str]]:
    hot = chosen["hot_region"]
    if hot is None:
        return []
    size = hot["size"]
    return [
        (
            "hot region",
            f"{size['first']:,} blocks at first, {size['last']:,} at last (grown {size['grown']}, shrunk "
            f"{size['shrunk']} times); hot requests: {hot['hot_hits']:,} in it, {hot['hot_misses']:,} had to go "
            f"elsewhere; cold ones: {hot['cold_kept_out']:,} kept out, {hot['cold_intruded']:,} came in; cached blocks "
            f"lost: {hot['evicted_in_hot']:,} in it, {hot['evicted_in_cold']:,} outside; spared by their region "
            f"{hot['spared_by_region']:,}, by their level {hot['spared_by_level']:,}",
        )
    ]


def _mebibytes(count: float | None) -> str:
    return "–" if count is None else f"{count / (1 << 20):,.1f} MiB"


def _kernel_time(kernel: dict[str, Any]) -> str:
    """A kernel's time in all, `~` where it is coarse; where it is measured, its rate and share of the copy's."""
    text = f"{kernel['name']} {'~' if kernel['coarse'] else ''}{kernel['total_us'] / 1e3:,.1f} ms"
    if kernel["percent_of_copy"] is not None:
        text += f" ({kernel['gb_per_s']:,.0f} GB/s, {kernel['percent_of_copy']:.0f} % of copy)"
    return text


def _host_line(summary: dict[str, Any]) -> str:
    host, verify = summary["host"], summary["verify"] or {"mode": "off", "steps": 0, "calls": 0, "mismatches": 0}
    text = (
        f"{host['step_us']['median']:,.0f} µs a step beside the kernels (95 %: {host['step_us']['p95']:,.0f}), "
        f"{host['record_us']:,.0f} µs digest and recording, {host['check_us']:,.0f} µs invariants and metrics"
    )
    if verify["mode"] == "off":
        return f"{text}; not verified on the host"
    return (
        f"{text}, {host['verify_us']:,.0f} µs verification ({verify['mode']}: {verify['calls']:,} calls of "
        f"{verify['steps']:,} steps repeated, {count(verify['mismatches'], 'difference')})"
    )


def _fallback(summary: dict[str, Any]) -> str:
    """Why it is not the other backend, where that was for the asking."""
    return f" ({summary['fallback']})" if summary["fallback"] else ""


def _why_none(summary: dict[str, Any]) -> str:
    """Why no kernel runs, unless that was asked for."""
    why = summary["kernels_why"]
    return f" ({why})" if why and why != "kernels none was asked for" else ""


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None else f"{100 * ratio:.2f} %"
