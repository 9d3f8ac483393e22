"""Batch inference: predictions of a task model or CLIP for a folder, bucket or dataset."""
