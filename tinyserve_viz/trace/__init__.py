"""Request traces: formats, readers, generator."""
