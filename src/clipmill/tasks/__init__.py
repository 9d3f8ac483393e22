"""Downstream tasks of an image encoder: fine-tuning, evaluation, promotion.

Each task is a package: metric and outputs (``task``), inference network (``model``), data, test
split and metrics (``training``), and training objective (``objective``). Serving imports the first
two only.
"""
