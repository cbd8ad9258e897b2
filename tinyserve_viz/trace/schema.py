"""The published JSON Schema of our trace file: `python -m tinyserve_viz.trace.schema > docs/trace.schema.json`."""

from __future__ import annotations

import sys

import msgspec

from tinyserve_viz.trace.native import TraceFile


def json_schema() -> bytes:
    """The schema (draft 2020-12) as an indented JSON file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "tinyserve-viz trace"}
    schema |= msgspec.json.schema(TraceFile)
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(json_schema())
