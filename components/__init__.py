"""One Kubeflow component a file: thin, typed, no logic."""
