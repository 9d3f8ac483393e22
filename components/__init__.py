"""One Kubeflow component a file: thin, typed, no logic."""

from clipmill.cluster.names import TRAIN_IMAGE as IMAGE

__all__ = ["IMAGE"]
