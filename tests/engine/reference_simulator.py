"""The rules of docs/engine.md without forks, written a second time: plain lists and dicts, one block at a time.

It shares no code with the engine and is as slow as it looks. `simulate` returns what happened as tuples, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Happened = tuple[Any, ...]


@dataclass
class Job:
    number: int
    arrival: int
    prompt: int
    output: int
    hashes: list[int]  # content of the full prompt blocks, as far as it is known
    priority: int = 0
    cancel_at: int = -1
    ctx: int = 0
    target: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.prompt + self.output


@dataclass
class Pool:
    size: int
    policy: str
    happened: list[Happened]

    def __post_init__(self) -> None:
        self.free = list(range(self.size))  # never used, then in order of freeing
        self.cached: list[int] = []  # without a reference, in order of release
        self.ref = [0] * self.size
        self.hash_of: dict[int, int] = {}
        self.block_of: dict[int, int] = {}
        self.stamp: dict[int, int] = {}
        self.uses: dict[int, int] = {}
        self.bit: dict[int, bool] = {}
        self.clock = self.hand = 0

    def available(self) -> int:
        return len(self.free) + len(self.cached)

    def hit(self, block: int) -> None:
        if self.ref[block] == 0:
            self.cached.remove(block)
        self.ref[block] += 1
        self.uses[block] += 1
        self.bit[block] = True

    def index(self, block: int, content: int) -> bool:
        if content in self.block_of:
            return False
        self.hash_of[block], self.block_of[content] = content, block
        self.clock += 1
        self.stamp[block], self.uses[block], self.bit[block] = self.clock, 1, False
        return True

    def victim(self) -> int:
        if self.policy == "lru":
            return self.cached[0]
        if self.policy == "fifo":
            return min(self.cached, key=lambda b: self.stamp[b])
        if self.policy == "lfu":
            return min(self.cached, key=lambda b: (self.uses[b], self.stamp[b]))
        while True:
            block, self.hand = self.hand, (self.hand + 1) % self.size
            if block in self.cached:
                if not self.bit[block]:
                    return block
                self.bit[block] = False

    def take(self, wanted: list[tuple[Job, int]]) -> None:
        evicted = []
        while len(self.free) < sum(count for _, count in wanted):
            block = self.victim()
            self.cached.remove(block)
            del self.block_of[self.hash_of.pop(block)]
            self.free.append(block)
            evicted.append(block)
        if evicted:
            self.happened.append(("evicted", evicted))
        for job, count in wanted:
            blocks, self.free = self.free[:count], self.free[count:]
            for block in blocks:
                self.ref[block] = 1
            job.blocks += blocks
            self.happened.append(("allocated", job.number, blocks))

    def give_back(self, job: Job) -> None:
        if job.blocks:
            self.happened.append(("freed", job.number, job.blocks[::-1]))
        for block in job.blocks[::-1]:
            self.ref[block] -= 1
            if self.ref[block] == 0:
                (self.cached if block in self.hash_of else self.free).append(block)
        job.blocks = []


def simulate(
    jobs: list[Job], num_blocks: int, bs: int, max_tokens: int, max_seqs: int, reserve: int, policy: str, caching: bool
) -> list[Happened]:
    happened: list[Happened] = []
    pool = Pool(num_blocks, policy, happened)
    coming, waiting, running, preempted = list(jobs), list[Job](), list[Job](), set[int]()
    alive: dict[int, Job] = {}
    now = 0

    def up(tokens: int) -> int:
        return -(-tokens // bs)

    while True:
        while coming and coming[0].arrival <= now:
            job = coming.pop(0)
            happened.append(("arrived", job.number))
            if up(job.total) > num_blocks:
                happened.append(("rejected", job.number, up(job.total), num_blocks))
                continue
            job.target = job.prompt
            alive[job.number] = job
            place = len(waiting)
            while place and waiting[place - 1].number not in preempted and waiting[place - 1].priority > job.priority:
                place -= 1
            waiting.insert(place, job)
        late = [(j.cancel_at, j.number) for j in alive.values() if 0 <= j.cancel_at <= now]
        for _, number in sorted(late):
            job = alive.pop(number)
            pool.give_back(job)
            running = [j for j in running if j is not job]
            waiting = [j for j in waiting if j is not job]
            happened.append(("cancelled", number))
        if not running and not waiting:
            if not coming:
                return happened
            now = max(now, coming[0].arrival)
            continue

        budget, take, promised = max_tokens, dict[int, int](), list[tuple[Job, int]]()
        serve = [j for j in running if j.ctx >= j.target] + [j for j in running if j.ctx < j.target]
        for job in serve:
            if not budget:
                break
            if job not in running:
                continue
            tokens = 1 if job.ctx >= job.target else min(job.target - job.ctx, budget)
            need = up(job.ctx + tokens) - len(job.blocks)
            while need > pool.available() - sum(count for _, count in promised):
                pool.take(promised)
                promised = []
                victim = max(running, key=lambda j: (j.arrival, j.number))
                happened.append(("preempted", victim.number, victim.ctx))
                running.remove(victim)
                budget += take.pop(victim.number, 0)
                pool.give_back(victim)
                victim.target, victim.ctx = max(victim.ctx, victim.target), 0
                waiting.insert(0, victim)
                preempted.add(victim.number)
                if victim is job:
                    break
            if job in running:
                budget -= tokens
                take[job.number] = tokens
                if need:
                    promised.append((job, need))
        while waiting and budget and len(running) < max_seqs:
            job = waiting[0]
            hits: list[int] = []
            for content in job.hashes[: (job.prompt - 1) // bs] if caching else []:
                if content not in pool.block_of:
                    break
                hits.append(pool.block_of[content])
            need = up(job.target) - len(hits) + sum(pool.ref[b] == 0 for b in hits)
            if need + (reserve if running else 0) > pool.available() - sum(count for _, count in promised):
                break
            waiting.pop(0)
            happened.append(("admitted", job.number, hits))
            for block in hits:
                pool.hit(block)
            job.blocks, job.ctx = list(hits), len(hits) * bs
            running.append(job)
            take[job.number] = min(job.target - job.ctx, budget)
            budget -= take[job.number]
            if up(job.ctx + take[job.number]) > len(hits):
                promised.append((job, up(job.ctx + take[job.number]) - len(hits)))
        pool.take(promised)

        decoding = [j for j in running if j.number in take and j.ctx >= j.target]
        filling = [j for j in running if j.number in take and j.ctx < j.target]
        happened.append(("written", [j.number for j in decoding], [(j.number, take[j.number]) for j in filling]))
        entered = []
        for job in decoding + filling:
            before, job.ctx = job.ctx // bs, job.ctx + take[job.number]
            if caching and job in filling:
                whole = min(job.ctx // bs, job.prompt // bs, len(job.hashes))
                entered += [job.blocks[i] for i in range(before, whole) if pool.index(job.blocks[i], job.hashes[i])]
        if entered:
            happened.append(("cached", entered))
        over = [j for j in decoding + filling if j.ctx == j.total]
        for job in over:
            pool.give_back(job)
            running.remove(job)
            del alive[job.number]
        if over:
            happened.append(("finished", [j.number for j in over]))
        now += 20_000 + 20 * sum(take[j.number] for j in filling) + 50 * len(decoding)
        happened.append(("step", now, num_blocks - pool.available(), len(pool.cached)))
