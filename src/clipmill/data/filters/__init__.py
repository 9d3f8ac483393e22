"""Filters: which samples of a dataset are kept, judged by its score layers. One file a filter."""
