"""Pipelines: components wired together, and their run on one machine."""
