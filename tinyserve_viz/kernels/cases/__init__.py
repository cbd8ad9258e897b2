"""Cases of every kernel: small calls that say why they exist, for any backend."""

from __future__ import annotations

from tinyserve_viz.kernels.cases import attention, decisions, memory, upkeep
from tinyserve_viz.kernels.conformance import Case

CASES: tuple[Case, ...] = (*memory.CASES, *decisions.CASES, *attention.CASES, *upkeep.CASES)
