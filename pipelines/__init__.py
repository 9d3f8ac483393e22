"""How components are wired, and how a pipeline runs on one machine."""
