"""From image-text pairs to a dataset: sources, shards, layers, captioners, the loader."""
