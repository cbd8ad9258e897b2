"""One module per kernel: its definition and its NumPy reference, named as the published kernel."""
