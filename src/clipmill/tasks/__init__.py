"""One Task contract, one file a task."""
