"""Events to metrics, sentences and charts as data: what to show, not how."""
