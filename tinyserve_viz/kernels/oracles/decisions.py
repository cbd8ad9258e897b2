"""What steers, one fp32 operation at a time: each product and sum is rounded where the contract says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyserve_viz.kernels.decision_math import EXP2_COEFFICIENTS, LOG2_COEFFICIENTS, LOG2_E
from tinyserve_viz.kernels.definition import Status

F = np.float32


def warp_sum(values: Any) -> np.float32:
    """32 lanes take the values in turn, then every lane adds its partner's sum at distances 16, 8, 4, 2, 1."""
    lanes = [F(0)] * 32
    for i, value in enumerate(values):
        lanes[i % 32] = lanes[i % 32] + F(value)
    for distance in (16, 8, 4, 2, 1):
        lanes = [lanes[lane] + lanes[lane ^ distance] for lane in range(32)]
    return F(lanes[0] + F(0))


def exp2(x: Any) -> np.float32:
    """The polynomial of decision_exp2 on one number, scaled by ldexp in place of bit patterns."""
    x = F(x)
    if np.isnan(x) or x >= 128 or x < -150:
        return F(np.nan) if np.isnan(x) else F(np.inf) if x > 0 else F(0)
    n = round(float(x))  # ties to even, as rint
    f = x - F(n)
    power = EXP2_COEFFICIENTS[5]
    for coefficient in (*EXP2_COEFFICIENTS[4::-1], F(1)):
        power = F(F(power * f) + coefficient)
    return F(math.ldexp(float(power), n))


def log2(x: Any) -> np.float32:
    """The polynomial of decision_log2 on one number, split by frexp in place of bit patterns."""
    x = F(x)
    if np.isnan(x) or x <= 0 or np.isinf(x):
        return F(np.inf) if x == np.inf else F(-np.inf) if x == 0 else F(np.nan)
    fraction, exponent = math.frexp(float(x))
    if fraction < float(np.uint32(0x3F3504F3).view(F)):
        fraction, exponent = 2 * fraction, exponent - 1
    s = F(F(fraction) - F(1)) / F(F(fraction) + F(1))
    square = F(s * s)
    series = LOG2_COEFFICIENTS[4]
    for coefficient in LOG2_COEFFICIENTS[3::-1]:
        series = F(F(series * square) + coefficient)
    return F(F(exponent) + F(s * series))


def group_value(values: list[Any], reduction: int) -> np.float32:
    """max, mean or sum of a group's heads, in head order; NaN wins."""
    if reduction == 0:
        return F(np.nan) if any(np.isnan(v) for v in values) else F(max(values) + F(0))
    total = F(values[0])
    for value in values[1:]:
        total = F(total + value)
    total = F(total + F(0))
    return F(total / F(len(values))) if reduction == 1 else total


def permille(value: int) -> np.float32:
    """value / 1000 in fp32."""
    return F(F(value) / F(1000))


def _fold_heads(per_head: list[Any], num_kv_heads: int, out: Any, reduction: int) -> None:
    """Store one value per head, or one per KV head, into `out` [score heads]."""
    if len(out) == len(per_head):
        out[:] = per_head
        return
    group = len(per_head) // num_kv_heads
    out[:] = [group_value(per_head[k * group : (k + 1) * group], reduction) for k in range(num_kv_heads)]


def block_scoring(a: Any) -> Status:
    """max(q·low, q·high) summed over the channels of each block's box."""
    status = Status.OK
    a.block_score[:] = -np.inf
    num_heads = a.query.shape[1]
    num_kv_heads = a.box.shape[1]
    width = a.block_table.shape[1]
    for row in range(len(a.query)):
        needed = min(max(int(a.num_seq_blocks[row]), 0), width)
        status |= Status.OK if needed == a.num_seq_blocks[row] else Status.RANGE
        for logical in range(needed):
            block = int(a.block_table[row, logical])
            if not 0 <= block < len(a.box):
                status |= Status.UNMAPPED if block == -1 else Status.RANGE
                continue
            per_head = []
            for head in range(num_heads):
                low, high = a.box[block, head // (num_heads // num_kv_heads)].astype(F)
                q = a.query[row, head].astype(F)
                terms = [
                    F(0) * x if x == 0 else max(x * lo, x * hi) if x == x else x
                    for x, lo, hi in zip(q, low, high, strict=True)
                ]
                # An empty box (low = +inf, high = -inf) bounds nothing: its terms are -inf, not +inf.
                terms = [
                    F(-np.inf) if lo > hi and x != 0 else t for t, x, lo, hi in zip(terms, q, low, high, strict=True)
                ]
                per_head.append(warp_sum(terms))
            _fold_heads(per_head, num_kv_heads, a.block_score[row, :, logical], a.reduction)
    return status


def block_mass(a: Any) -> Status:
    """Softmax of the logits, added up per block; the largest logit of each block where it is asked for."""
    status = Status.OK
    a.block_mass[:] = 0
    if a.block_peak is not None:
        a.block_peak[:] = -np.inf
    num_heads = a.query.shape[1]
    num_blocks, size, num_kv_heads, _ = a.key_cache.shape
    width = a.block_table.shape[1]
    for row in range(len(a.query)):
        length = min(max(int(a.seq_lens[row]), 0), width * size)
        status |= Status.OK if length == a.seq_lens[row] else Status.RANGE
        tokens: dict[int, list[tuple[int, int]]] = {}
        for position in range(length):
            block = int(a.block_table[row, position // size])
            if 0 <= block < num_blocks:
                tokens.setdefault(position // size, []).append((block, position % size))
            else:
                status |= Status.UNMAPPED if block == -1 else Status.RANGE
        per_block = np.zeros((num_heads, width), F)
        for head in range(num_heads) if tokens else ():
            kv_head = head // (num_heads // num_kv_heads)
            q = a.query[row, head].astype(F)
            logits = {
                logical: [F(warp_sum(q * a.key_cache[b, s, kv_head].astype(F)) * a.scale) for b, s in slots]
                for logical, slots in tokens.items()
            }
            every = [x for xs in logits.values() for x in xs if not np.isnan(x)]
            status |= Status.OK if len(every) == sum(map(len, logits.values())) else Status.NOT_A_NUMBER
            top = max(every, default=F(-np.inf))
            for logical, xs in logits.items() if a.block_peak is not None else ():
                a.block_peak[row, head, logical] = max((x + F(0) for x in xs if not np.isnan(x)), default=F(-np.inf))
            if not np.isfinite(top):
                status |= Status.NOT_A_NUMBER
                continue
            for logical, xs in logits.items():
                per_block[head, logical] = warp_sum([F(0) if np.isnan(x) else exp2(F(F(x - top) * LOG2_E)) for x in xs])
            total = warp_sum(per_block[head])
            per_block[head] = [F(m / total) for m in per_block[head]]
        for logical in range(width):
            _fold_heads(list(per_block[:, logical]), num_kv_heads, a.block_mass[row, :, logical], a.reduction)
    return status


def query_analysis(a: Any) -> Status:
    """Energy, or normalised entropy by its definition in bits."""
    status = Status.OK
    for row in range(len(a.query)):
        if a.mode == 0:
            q = a.query[row].reshape(-1).astype(F)
            value = F(warp_sum([x * x for x in q]) / F(max(1, len(q))))
        else:
            width = a.block_score.shape[2]
            blocks = min(max(int(a.num_scored[row]), 0), width)
            status |= Status.OK if blocks == a.num_scored[row] else Status.RANGE
            value = F(0)
            if blocks > 1:
                summed = [group_value(list(a.block_score[row, :, i]), 2) for i in range(blocks)]
                value = F(_bits(summed, a.mode, a.scale) / log2(blocks))
                value = F(1) if value > 1 else F(0) if value < 0 else value
        if np.isnan(value):
            status |= Status.NOT_A_NUMBER
            value = F(0)
        a.complexity[row] = value
        a.requirement[row] = 2 if value > permille(a.high_permille) else 1 if value > permille(a.medium_permille) else 0
    return status


def _bits(values: list[Any], mode: int, scale: Any) -> np.float32:
    """Entropy in bits of softmax(scale·values) (mode 1) or of the shares themselves."""
    if mode == 2:
        total = warp_sum(values)
        return F(log2(total) - F(warp_sum([F(0) if v == 0 else F(v * log2(v)) for v in values]) / total))
    scaled = [F(v * scale) for v in values]
    top = F(np.nan) if any(np.isnan(v) for v in scaled) else max(scaled)
    ys = [F(F(v - top) * LOG2_E) for v in scaled]
    es = [exp2(y) for y in ys]
    total = warp_sum(es)
    return F(log2(total) - F(warp_sum([F(0) if e == 0 else F(e * y) for e, y in zip(es, ys, strict=True)]) / total))


def pick(scores: Any, budget: int, sinks: int, recent: int, selected: Any, count: Any) -> Status:
    """Sort the row's blocks by (kept always, score, lower id) and keep the first `budget`."""
    selected[:] = -1
    count[0] = 0
    status = Status.NOT_A_NUMBER if any(np.isnan(s) for s in scores) else Status.OK
    if budget > len(selected):
        return status | Status.RANGE
    total = len(scores)

    def rank(block: int) -> tuple[bool, float, int]:
        always = block < sinks or block >= total - recent
        return (not always, math.inf if np.isnan(scores[block]) else -float(scores[block]), block)

    kept = sorted(sorted(range(total), key=rank)[:budget])
    selected[: len(kept)] = kept
    count[0] = len(kept)
    return status


def cache_selection(a: Any) -> Status:
    """Row score, priority, budget, choice and access counts, row by row."""
    status = Status.OK
    width = a.block_score.shape[2]
    for row in range(len(a.complexity)):
        total = min(max(int(a.num_seq_blocks[row]), 0), width)
        status |= Status.OK if total == a.num_seq_blocks[row] else Status.RANGE
        c = a.complexity[row]
        if np.isnan(c):
            status |= Status.NOT_A_NUMBER
            c = F(0)
        mean = F(F(sum(int(x) for x in a.history[row, :total])) / F(max(total, 1)))
        terms = (
            F(permille(a.weight_complexity) * min(F(c), F(1))),
            F(permille(a.weight_requirement) * F(a.requirement[row])),
            F(permille(a.weight_history) * F(min(mean, F(100)) / F(100))),
        )
        score = F(F(terms[0] + terms[1]) + terms[2])
        threshold = permille(a.threshold_permille)
        a.row_score[row] = score
        a.priority[row] = 2 if score > threshold else 1 if score > F(threshold * F(0.5)) else 0
        always = min(total, a.sinks + a.recent)
        if a.mode == 0:
            budget = max(always, a.budget_blocks if a.budget_blocks else total * a.ratio_permille // 1000, 1)
        elif a.mode == 2:
            budget = sum(1 for i in range(total) if a.priority[row] or not i > total // 2)
        else:
            budget = always + {2: min(max(int(a.requirement[row]) + 1, 0), 4), 1: 1, 0: 0}[int(a.priority[row])]
        budget = min(total, budget)
        scores = a.block_score[row, :, :total]
        if np.isnan(scores).any():
            status |= Status.NOT_A_NUMBER
        if a.selected.shape[1] != len(scores):
            numbers = np.where(np.isnan(scores), F(-np.inf), scores)
            scores = np.array([[group_value(list(numbers[:, i]), 2) for i in range(total)]], F).reshape(1, total)
        for head, row_scores in enumerate(scores):
            status |= pick(row_scores, budget, a.sinks, a.recent, a.selected[row, head], a.count[row, head : head + 1])
        for logical in sorted({int(x) for x in a.selected[row].reshape(-1)} - {-1}):
            a.history[row, logical] += 1
            if a.block_table is None:
                continue
            block = int(a.block_table[row, logical])
            size = next(len(x) for x in (a.uses, a.freq, a.last_use) if x is not None)
            if not 0 <= block < size:
                status |= Status.UNMAPPED if block == -1 else Status.RANGE
                continue
            for counter in (a.uses, a.freq):
                if counter is not None:
                    counter[block] += 1
            if a.last_use is not None:
                a.last_use[block] = a.clock
    return status


_WORD = (1 << 64) - 1


def _drawn(*parts: int) -> np.float32:
    """SplitMix64 over the parts with Python's integers, and the sum of the hash's four quarters as a number."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & _WORD)) * 0xBF58476D1CE4E5B9 & _WORD
        state ^= state >> 30
        state = state * 0x94D049BB133111EB & _WORD
        state ^= state >> 31
    total = sum(state >> shift & 0xFFFF for shift in (0, 16, 32, 48))
    return F(F(total - 131_070) / F(37_837))


def content_generation(a: Any) -> Status:
    """One channel at a time."""
    status = Status.OK
    num_tokens, _, num_kv_heads, head_dim = a.kv.shape
    group = a.query.shape[1] // num_kv_heads
    topic = [0] * num_tokens
    for t in range(num_tokens if a.topic is not None else 0):
        topic[t] = int(a.topic[t])
        if not 0 <= topic[t] < a.centre.shape[1]:
            status |= Status.RANGE
            topic[t] = 0
    for t in range(num_tokens):
        for head in range(num_kv_heads):
            for d in range(head_dim):
                key = _drawn(a.seed, 1, a.layer, head, d, int(a.token[t]))
                if a.topic is not None:
                    key = F(F(F(0.75) * a.centre[head, topic[t], d]) + F(F(0.625) * key))
                    if 0 <= a.position[t] < 4:
                        key = F(key + F(F(0.75) * a.sink[head, d]))
                a.kv[t, 0, head, d] = key
                a.kv[t, 1, head, d] = _drawn(a.seed, 2, a.layer, head, d, int(a.token[t]))
    for row in range(len(a.query)):
        t = int(a.query_token[row])
        a.query[row] = 0
        if not 0 <= t < num_tokens:
            status |= Status.OK if t == -1 else Status.RANGE
            continue
        for head in range(a.query.shape[1]):
            for d in range(head_dim):
                x = _drawn(a.seed, 3, a.layer, head, d, int(a.token[t]))
                if a.topic is not None:
                    x = F(F(F(0.875) * a.centre[head // group, topic[t], d]) + F(F(0.5) * x))
                    x = F(x + F(F(0.5) * a.sink[head // group, d]))
                a.query[row, head, d] = x
    return status
