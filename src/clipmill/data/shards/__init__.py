"""Shards of a dataset: plan, write, finalize, read and cache them."""
