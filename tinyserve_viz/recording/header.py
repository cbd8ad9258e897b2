"""What a recording says about itself: schema, configuration, origin, and the columns of the workload."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tinyserve_viz.core.config import ContentConfig, EngineConfig, ModelConfig, as_dict
from tinyserve_viz.core.rules import EngineRules
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.core.stream import StreamState
from tinyserve_viz.core.workload import Workload, sequences_of
from tinyserve_viz.recording.codec import decode_value, encode_value

SCHEMA = 2  # 2: compaction, quality and placement have fields of their own in events and state
_COLUMNS = ("arrival_us", "prompt_len", "output_len", "num_samples", "parent", "fork_at", "cancel_at_us", "priority")


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """Everything that a view needs to know besides the events; `origin` holds trace name, format, backend, versions.

    `prefix_ids` are the trace's own, encoded (`recording.prefix_ids`); None where it had none.
    """

    engine: EngineConfig
    rules: EngineRules
    model: ModelConfig
    content: ContentConfig
    workload: Workload
    origin: dict[str, Any]
    prefix_ids: bytes | None = None

    @property
    def stream(self) -> dict[str, Any] | None:
        """Of a recorded KV-event stream: its `places` as (medium, group), `first_time_s`, whether the pool's size was
        `given`. None for the replay of a trace."""
        found: dict[str, Any] | None = self.origin.get("stream")
        return found

    def empty_state(self) -> CacheState:
        """The state before the first event."""
        if self.stream is not None:
            return StreamState(self.workload, self.engine.num_blocks, self.engine.block_size)
        return CacheState(
            self.workload,
            self.engine.num_blocks,
            self.engine.block_size,
            int(self.rules.null_block),
            self.rules.free_order == "queue",
        )

    def to_rows(self) -> dict[str, bytes]:
        """Rows of the table `meta`."""
        settings = {
            "engine": as_dict(self.engine),
            "rules": as_dict(self.rules),
            "model": as_dict(self.model),
            "content": as_dict(self.content),
            "origin": self.origin,
        }
        w = self.workload
        columns = {name: getattr(w, name) for name in _COLUMNS}
        rows = {
            "schema": str(SCHEMA).encode(),
            "settings": json.dumps(settings).encode(),
            "workload": encode_value({"ids": w.request_ids, "num_hashes": w.num_hashes, **columns}),
        }
        if self.origin.get("kernels_run", "none") != "none":  # the content, which a view may make again, needs them
            steps = np.diff(w.hash_flat, prepend=np.int32(0))  # mostly 1, so that little is left of them
            counts = np.diff(w.hash_offsets).astype(np.int32)
            rows["hashes"] = zlib.compress(encode_value({"counts": counts, "steps": steps}))
        if self.prefix_ids is not None:
            rows["prefix_ids"] = self.prefix_ids
        return rows

    @classmethod
    def from_rows(cls, rows: dict[str, bytes]) -> Header:
        """The header again; raises KeyError, ValueError, TypeError or zlib.error when the rows are not one."""
        settings = json.loads(rows["settings"])
        columns = decode_value(rows["workload"])
        first_seq, request_of_seq = sequences_of(columns["num_samples"])
        counts, steps = np.zeros(len(columns["ids"]), dtype=np.int32), np.zeros(0, dtype=np.int32)
        if "hashes" in rows:
            hashes = decode_value(zlib.decompress(rows["hashes"]))
            counts, steps = hashes["counts"], hashes["steps"]
        workload = Workload(
            request_ids=tuple(columns["ids"]),
            num_hashes=columns["num_hashes"],
            hash_flat=np.cumsum(steps, dtype=np.int32),
            hash_offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            first_seq=first_seq,
            request_of_seq=request_of_seq,
            **{name: columns[name] for name in _COLUMNS},
        )
        return cls(
            engine=EngineConfig(**settings["engine"]),
            rules=EngineRules(**_known(EngineRules, settings["rules"])),
            model=ModelConfig(**settings["model"]),
            content=ContentConfig(**settings["content"]),
            workload=workload,
            origin=settings["origin"],
            prefix_ids=rows.get("prefix_ids"),
        )


def _known(config: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(config)}
    return {name: value for name, value in values.items() if name in names}
