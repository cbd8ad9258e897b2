"""Selection policies: which blocks of its context a query reads. `SELECTION` lists them."""

from tinyserve_viz.memory.policies.selection import (
    oracle,
    paper,
    random,
    recency,
    seed,
    seed_published,
    snapkv,
    streaming,
)
from tinyserve_viz.memory.policies.selection.policy import SelectionPolicy

SELECTION: tuple[SelectionPolicy, ...] = (
    paper.POLICY,
    seed.POLICY,
    seed_published.POLICY,
    streaming.POLICY,
    recency.POLICY,
    random.POLICY,
    oracle.POLICY,
    snapkv.POLICY,
)


def selection_named(name: str) -> SelectionPolicy:
    """The policy of that name; a name that the configuration accepts and nobody has is a bug."""
    return next(policy for policy in SELECTION if policy.name == name)
