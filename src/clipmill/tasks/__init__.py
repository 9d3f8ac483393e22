"""Downstream tasks of an image encoder: fine-tuning, evaluation, promotion.

Each task is a package with its config, data and metrics (``task``), inference network (``model``)
and training objective (``objective``).
"""
