"""Random image transforms, for pretraining and for each task."""
