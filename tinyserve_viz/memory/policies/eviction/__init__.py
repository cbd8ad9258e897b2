"""Eviction policies: which cached, unreferenced blocks to give up. `EVICTION` lists them by name."""

from tinyserve_viz.memory.policies.eviction import clock, fifo, lfu, lru
from tinyserve_viz.memory.policies.eviction.victims import EvictionPolicy

EVICTION: dict[str, EvictionPolicy] = {
    "clock": clock.choose,
    "fifo": fifo.choose,
    "lfu": lfu.choose,
    "lru": lru.choose,
}
