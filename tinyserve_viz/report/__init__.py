"""Summaries, plots and exports: how what `analysis` chose is written down."""
