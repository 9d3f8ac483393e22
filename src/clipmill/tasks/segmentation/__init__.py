"""Semantic segmentation on ADE20K's layout."""
