"""Scheduler, clock and step pipeline: a trace in, events out."""
