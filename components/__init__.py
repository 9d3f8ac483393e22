"""One Kubeflow component a file: thin, typed, no logic."""

IMAGE = "clipmill/python:0.1.0"
"""Image that every component runs in, on a cluster."""
