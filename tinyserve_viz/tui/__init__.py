"""The terminal debugger: panels that draw one immutable frame of a recording."""
