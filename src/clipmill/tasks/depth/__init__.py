"""Monocular depth estimation on NYUv2's layout."""
