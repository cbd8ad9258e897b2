"""Time the kernels on a GPU as the field does: graph replay over inputs larger than the L2 cache, useful bytes only."""
