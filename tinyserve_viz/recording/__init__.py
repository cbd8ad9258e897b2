"""Recordings: every event of a replay in one SQLite file, and the way back to any moment of it."""
