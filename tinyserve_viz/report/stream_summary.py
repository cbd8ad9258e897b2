"""The summary of a recorded KV-event stream, as one JSON object (schema 1) and as text."""

from __future__ import annotations

from typing import Any

from tinyserve_viz.analysis.stream_metrics import StreamMetrics
from tinyserve_viz.core.check import Violation
from tinyserve_viz.core.stream import StreamState
from tinyserve_viz.recording.header import Header
from tinyserve_viz.report.summary import SCHEMA


def summarize_stream(
    header: Header,
    metrics: StreamMetrics,
    state: StreamState,
    num_events: int,
    wall_s: float,
    checked: int,
    violations: list[Violation],
    digest: str,
) -> dict[str, Any]:
    """What `import` and `replay --headless --json` print; `requests` and `prefix` are null: the stream has none."""
    return {
        "schema": SCHEMA,
        "kind": "kv-events",
        "trace": header.origin["trace"],
        "steps": metrics.batches,
        "events": num_events,
        "wall_s": round(wall_s, 6),
        **metrics.as_dict(state),
        "requests": None,
        "prefix": None,
        "invariants": {
            "checked": checked,
            "violations": len(violations),
            "first_violations": [
                {"step": v.step, "invariant": v.invariant, "message": v.message} for v in violations[:10]
            ],
        },
        "digest": digest,
    }


def stream_as_text(summary: dict[str, Any]) -> str:
    """The summary for a reader."""
    stream, blocks = summary["stream"], summary["blocks"]
    gaps, checks = stream["gaps"], summary["invariants"]
    given = blocks["num_blocks"]
    pool = "the stream does not tell (--num-blocks does)" if given is None else f"{given:,} blocks, as given"
    rank = "" if stream["rank"] is None else f", data-parallel rank {stream['rank']}"
    mean = "–" if blocks["mean_cached"] is None else f"{blocks['mean_cached']:,.1f}"
    lines = [
        (
            "stream",
            f"{summary['trace']['name']} (KV events{rank}): requests unknown, and so are {_and(stream['untold'][1:])}",
        ),
        (
            "batches",
            f"{stream['batches']:,}, sequence numbers {stream['first_sequence']:,} to {stream['last_sequence']:,}, "
            f"over {stream['duration_s']:,.3f} s of the server's clock",
        ),
        ("gaps", _gaps(gaps)),
        (
            "events",
            ", ".join(
                f"{name} {found['events']:,} ({found['blocks']:,} block{'s' * (found['blocks'] != 1)})"
                for name, found in stream["events"].items()
            ),
        ),
        (
            "blocks",
            f"peak {blocks['peak_cached']:,} cached, {mean} on average over time, {blocks['cached']:,} at the end "
            f"({blocks['distinct_hashes']:,} distinct hashes), at most {blocks['most_copies']:,} of one hash; "
            f"{blocks['block_size']} tokens each",
        ),
        ("pool", pool),
        ("evictions", f"{blocks['evictions']:,} cached blocks removed, {blocks['cleared']:,} more cleared at once"),
    ]
    if len(blocks["places"]) > 1:
        where = ", ".join(f"{p['medium']} group {p['group']}: {p['cached']:,}" for p in blocks["places"])
        lines.append(("places", where))
    if stream["unknown_events"]:
        names = ", ".join(f"{name} {number:,}" for name, number in stream["unknown_events"].items())
        lines.append(("NOT APPLIED", f"events of unknown types: {names}"))
    if blocks["removed_but_never_stored"]:
        number = blocks["removed_but_never_stored"]
        lines.append(("UNMATCHED", f"{number:,} removals of blocks that the stream never showed being stored"))
    lines += [
        ("invariants", f"{checks['checked']:,} checked, {checks['violations']:,} violated"),
        ("digest", summary["digest"]),
    ]
    if summary.get("complete") is False:
        lines.insert(0, ("INCOMPLETE", "interrupted; this is what was recorded up to the last committed batch"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _gaps(gaps: dict[str, Any]) -> str:
    if not gaps["number"]:
        return "none"
    spans = []
    for gap in gaps["first"][:3]:
        first, last = gap["sequence"], gap["sequence"] + gap["missing"] - 1
        spans.append(f"{first:,}" if first == last else f"{first:,} to {last:,}")
    more = f" and {gaps['number'] - len(spans):,} more" if gaps["number"] > len(spans) else ""
    return (
        f"{gaps['missing_batches']:,} batches in {gaps['number']:,} gaps are missing (sequence numbers "
        f"{', '.join(spans)}{more}): from there on counts are of what is seen, not of what is there"
    )


def _and(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
