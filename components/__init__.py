"""Kubeflow components by category, one per file: typed wrappers of stages without logic."""

from clipmill.cluster.constants import TRAIN_IMAGE as IMAGE

__all__ = ["IMAGE"]
