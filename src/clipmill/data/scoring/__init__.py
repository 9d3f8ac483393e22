"""Scores: what is measured of a dataset's pictures and captions, as layers below ``score/``."""
