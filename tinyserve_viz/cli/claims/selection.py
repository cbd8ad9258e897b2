"""Claims about query-aware selection: replays of a small declared workload with all kernels, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyserve_viz.analysis.claim import Number, counted, interval
from tinyserve_viz.cli.claims import reference
from tinyserve_viz.cli.claims.counting import Ask
from tinyserve_viz.cli.claims.timed import in_words
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.engine.captured import read_capture
from tinyserve_viz.trace.request import Request, Trace

Found = tuple[list[Number], str]

NUM_SEQS, PROMPT, OUTPUT = 4, 1024, 16
WORKLOAD = f"{NUM_SEQS} sequences of {PROMPT:,} + {OUTPUT} tokens, 8 / 2 heads of 64"
CONTENTS = ("topics", "iid")
PAGES = (4, 8, 16, 32, 64)
RATIOS = (100, 200, 300, 500)
BUDGETS = (8, 16, 32, 64)  # blocks, on captured content
COMPARED = ("paper", "recency", "random", "streaming", "oracle")
_MASS = "attention mass kept, mean of exp(lse selected − lse of all)"


def _section(ask: Ask, content: str, seed: int, **engine: Any) -> dict[str, Any]:
    """The section `selection` of one replay's summary; replays are kept."""
    key = (content, seed, *sorted(engine.items()))
    if key not in ask.selections:
        if seed == 1:
            shown = ", ".join(f"{name} {value}" for name, value in engine.items())
            ask.say(f"selecting on {content} ({shown})")
        ask.selections[key] = _replayed(_workload(NUM_SEQS, PROMPT, seed), {"kind": content, "seed": seed}, engine)
    found: dict[str, Any] = ask.selections[key]
    return found


def _workload(num_seqs: int, prompt: int, seed: int) -> Trace:
    requests = tuple(Request(f"s{i}", 0, prompt, OUTPUT) for i in range(num_seqs))
    return Trace("selection", "json", requests, seed=seed)


def _replayed(trace: Trace, content: dict[str, Any], engine: dict[str, Any]) -> dict[str, Any]:
    size = engine.get("block_size", 16)
    blocks = sum(-(-(r.prompt_len + r.output_len) // size) for r in trace.requests) + 64
    settings = Settings(
        engine={"num_blocks": blocks, "watermark_permille": 0, **engine},
        content=content,
        kernels="all",
        attention="query-aware",
    )
    section = run_replay(prepare(trace, settings))["selection"]
    assert section is not None
    found: dict[str, Any] = section
    return found


def _values(ask: Ask, content: str, path: Sequence[str], **engine: Any) -> list[float]:
    """A number of the section for every seed."""
    values = []
    for seed in range(1, ask.seeds + 1):
        found: Any = _section(ask, content, seed, **engine)
        for name in path:
            found = found[name]
        values.append(float(found))
    return values


def _over_seeds(ask: Ask, content: str, path: Sequence[str], **engine: Any) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval of a number of the section."""
    return interval(_values(ask, content, path, **engine))


def _number(name: str, found: tuple[float, float], unit: str, definition: str, on: str) -> list[Number]:
    scale, sign = (100, " points") if unit in ("%", "points") else (1, "")
    return [counted(name, found[0], unit, f"{definition}; ± {scale * found[1]:.2g}{sign} (95 %, over seeds)", on)]


MASS = ("retained_mass", "mean")


def hit_rate(ask: Ask) -> Found:
    """Mass kept and recall of the oracle's choice at one budget, by policy; what the box score gains over others."""
    numbers, said = [], []
    for content in CONTENTS:
        on = f"{content}, {WORKLOAD}, {ask.seeds} seeds, 30 % of the blocks"
        engine = {"ratio_permille": 300, "block_size": 16}
        for policy in COMPARED:
            recall = _over_seeds(ask, content, ("hit_rates", "selection_recall"), selection=policy, **engine)
            numbers += _number(
                f"{policy}, mass", _over_seeds(ask, content, MASS, selection=policy, **engine), "%", _MASS, on
            )
            numbers += _number(f"{policy}, recall", recall, "%", "blocks of the oracle's choice that were chosen", on)
        gained = _gains(ask, content, COMPARED, **engine)
        for other, gain in gained.items():
            words = "mass kept by paper less that by the other, of the same seeds"
            numbers += _number(f"paper − {other}", gain, "points", words, on)
        said.append(f"{content}: {_in_words(gained)}")
        numbers += _at_seeds_budget(ask, content)
    if ask.captured is not None:
        captured, words = _on_captured(ask, ask.captured)
        numbers += captured
        said.append(words)
    for trace in ask.traces:
        rate = ask.replay(trace).totals["prefix"]["token_hit_rate"]
        if rate is not None:
            words = "prompt tokens found in the prefix cache: another hit rate, selection does not change it"
            numbers.append(counted("prefix hit", rate, "%", words, ask.first(trace)))
        hot = ask.replay(trace, "trace", eviction="seed").totals["hot_region"]
        if hot is not None:
            words = "requests for blocks by sequences past 5 decode steps that got one of the hot region, eviction seed"
            numbers.append(counted("hot-region hit", hot, "%", words, ask.first(trace)))
    return numbers, (
        f"mass that the box score keeps beyond others at one budget: {'; '.join(said)}; which hit rate the claim "
        "means, and over what, it does not say"
    )


def _gains(ask: Ask, content: str, policies: Sequence[str], **engine: Any) -> dict[str, tuple[float, float]]:
    """Mass kept by `paper` less that of each other policy, paired by seed."""
    kept = {policy: _values(ask, content, MASS, selection=policy, **engine) for policy in policies}
    return {
        other: interval([ours - theirs for ours, theirs in zip(kept["paper"], kept[other], strict=True)])
        for other in policies
        if other not in ("paper", "oracle")
    }


def _in_words(gains: dict[str, tuple[float, float]]) -> str:
    parts = [f"{100 * gain:+.1f} ± {100 * half:.1f} points over {other}" for other, (gain, half) in gains.items()]
    return ", ".join(parts)


def _at_seeds_budget(ask: Ask, content: str) -> list[Number]:
    """The seed's own rule beside others that may keep as many blocks."""
    share = _over_seeds(ask, content, ("read_share",), selection="seed", block_size=16)[0]
    blocks = max(1, round(share * -(-(PROMPT + OUTPUT // 2) // 16)))
    on = f"{content}, {WORKLOAD}, {ask.seeds} seeds, {blocks} blocks: what seed's own rule keeps"
    numbers = _number("seed, mass", _over_seeds(ask, content, MASS, selection="seed", block_size=16), "%", _MASS, on)
    for policy in COMPARED:
        kept = _over_seeds(ask, content, MASS, selection=policy, budget_blocks=blocks, block_size=16)
        numbers += _number(f"{policy}, mass", kept, "%", _MASS, on)
    return numbers


def _on_captured(ask: Ask, file: str) -> tuple[list[Number], str]:
    """Mass kept on captured Q, K and V, by budget."""
    capture = read_capture(file)
    prompt = capture.num_tokens - OUTPUT
    if prompt < 1:
        raise ConfigError(f"{file}: {capture.num_tokens} tokens, expected more than {OUTPUT}")
    content = {"kind": "npz", "path": file}
    numbers: list[Number] = []
    gains = []
    for blocks in BUDGETS:
        if blocks >= prompt // 16:
            break
        kept = {}
        for policy in COMPARED:
            ask.say(f"selecting on {file} ({policy}, {blocks} blocks)")
            section = _replayed(_workload(1, prompt, 1), content, {"selection": policy, "budget_blocks": blocks})
            kept[policy] = section["retained_mass"]["mean"]
            on = f"{Path(file).name}, {OUTPUT} decode steps from {prompt:,} tokens on, {blocks} blocks of 16"
            numbers.append(counted(f"{policy}, mass", kept[policy], "%", f"{_MASS}, all captured layers", on))
        gains.append(f"{100 * (kept['paper'] - kept['streaming']):+.1f} points over streaming with {blocks} blocks")
    return numbers, f"captured: {', '.join(gains) or 'too short for a budget'}"


def page_size(ask: Ask) -> Found:
    """Quality by block size at 30 % of the blocks, in place of perplexity, which needs a model."""
    numbers = []
    kept: dict[tuple[str, int], float] = {}
    for content in CONTENTS:
        on = f"{content}, {WORKLOAD}, {ask.seeds} seeds"
        for size in PAGES:
            engine = {"selection": "paper", "ratio_permille": 300, "block_size": size}
            mass = _over_seeds(ask, content, ("retained_mass", "mean"), **engine)
            error = _over_seeds(ask, content, ("output_error", "mean"), **engine)
            kept[content, size] = mass[0]
            numbers += _number(f"mass kept, blocks of {size}", mass, "%", _MASS, on)
            numbers += _number(f"output error, blocks of {size}", error, "", "mean |selected − full| / |full|", on)
    numbers += ask.timed.times("page-size", "", "latency")
    if not ask.timed.rows:
        numbers += reference.pages(ask)
    falls = kept["topics", 4] > kept["topics", 64]
    return numbers, (
        f"on topics the mass kept {'falls' if falls else 'does not fall'} from {100 * kept['topics', 4]:.0f} % at 4 to "
        f"{100 * kept['topics', 64]:.0f} % at 64 tokens a block, the direction that is claimed"
        f"{'' if falls else ' is not seen'}; on iid, where no block says anything, it goes from "
        f"{100 * kept['iid', 4]:.0f} to {100 * kept['iid', 64]:.0f} %; perplexity needs a model"
    )


def ratio(ask: Ask) -> Found:
    """Mass kept against what is read, by ratio."""
    numbers, kept = [], {}
    for permille in RATIOS:
        engine = {"selection": "paper", "ratio_permille": permille, "block_size": 16}
        on = f"topics, {WORKLOAD}, {ask.seeds} seeds"
        mass = _over_seeds(ask, "topics", ("retained_mass", "mean"), **engine)
        read = _over_seeds(ask, "topics", ("read_share",), **engine)
        kept[permille] = mass[0]
        numbers += _number(f"mass kept, ρ = {permille / 1000:g}", mass, "%", _MASS, on)
        numbers += _number(f"K/V read, ρ = {permille / 1000:g}", read, "%", "tokens read / tokens held, no boxes", on)
    steps = ", ".join(f"{100 * share:.0f} % at {permille / 1000:g}" for permille, share in kept.items())
    return numbers, f"mass kept on topics: {steps}; `compare TRACE --selection … --ratio …` draws it for any trace"


def resident(ask: Ask) -> Found:
    """Bytes resident against bytes read: selection changes the second alone."""
    numbers = []
    for content in CONTENTS:
        on = f"{content}, {WORKLOAD}, {ask.seeds} seeds"
        engine = {"selection": "paper", "ratio_permille": 300, "block_size": 16}
        read = _over_seeds(ask, content, ("read_share",), **engine)
        held = _over_seeds(ask, content, ("resident_share",), **engine)
        numbers += _number("K/V read in a step", read, "%", "tokens read / tokens held, ρ = 0.3", on)
        numbers += _number("K/V resident", held, "%", "bytes held with selection / without", on)
    layers, width, tokens = 24, 2048, 32_768
    cache = layers * 2 * width * 2 * tokens / 2**30
    numbers.append(
        counted("whole K/V cache", cache, "GiB", f"{layers} layers × K, V × {width:,} × fp16 × {tokens:,} tokens")
    )
    return numbers, (
        "selection frees nothing: all blocks stay resident, only the bytes read fall; 8.6 GB saved is more than the "
        f"whole K/V cache of that model at 32 K and batch 1 ({cache:.1f} GiB)"
    )


def reuse(ask: Ask) -> Found:
    """How much of a step's choice the next step makes again, by content."""
    numbers, said = [], []
    for content in CONTENTS:
        on = f"{content}, {WORKLOAD}, {ask.seeds} seeds"
        engine = {"selection": "paper", "ratio_permille": 300, "block_size": 16}
        found = _over_seeds(ask, content, ("hit_rates", "temporal_reuse"), **engine)
        numbers += _number("temporal reuse", found, "%", "blocks of this step's choice that the last step chose", on)
        said.append(f"{100 * found[0]:.0f} % on {content}")
    return numbers, f"{', '.join(said)}: it is a property of the content, so none of the method alone"


def fused_choice(ask: Ask) -> Found:
    """Whether the fused kernel chooses the same blocks; how much faster it is only a GPU tells."""
    requests = tuple(Request(f"s{i}", 0, PROMPT, OUTPUT) for i in range(NUM_SEQS))
    chosen = Settings(engine={"num_blocks": 1024}, content={"seed": 1}, kernels="all", attention="query-aware-fused")
    ask.say("running the fused kernel beside the separate ones")
    summary = run_replay(prepare(Trace("fused", "json", requests, seed=1), chosen))
    differ = sum("the fused form chose" in v["message"] for v in summary["invariants"]["first_violations"])
    rows = summary["selection"]["rows"]
    numbers = [
        counted("differing choices", differ, "", f"of {rows:,} of the fused and the separate kernels", WORKLOAD),
        counted("launches", 1, "", "fused: score, top-k, gather, attention"),
        counted("launches, separate", 3, "", "score, choice, attention"),
        *ask.timed.speed_ups("sparse-decode", "query_aware, three launches", "query_aware, fused", "fused over three"),
    ]
    return numbers, f"page sets {'the same' if not differ else 'NOT the same'}; {in_words(numbers, 'fused over three')}"
