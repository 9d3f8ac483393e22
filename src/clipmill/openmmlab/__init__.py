"""The only importer of mm*: the ops bridge, heads and metrics."""
