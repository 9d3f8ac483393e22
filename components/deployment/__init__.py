"""Components that promote, test and deploy models, and record a run's status."""
