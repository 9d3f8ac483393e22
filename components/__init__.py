"""One Kubeflow component a file: thin, typed, no logic."""

from clipmill.cluster.constants import TRAIN_IMAGE as IMAGE

__all__ = ["IMAGE"]
