"""Looking at results: the report."""
