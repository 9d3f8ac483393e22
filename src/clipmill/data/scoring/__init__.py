"""Scores: what is measured of a dataset's images and captions, as layers below ``score/``."""
