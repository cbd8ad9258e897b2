"""Who holds which block: managers and policies read a state and return events."""
