"""Components that evaluate models, compare them, and write reports."""
