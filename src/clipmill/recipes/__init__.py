"""Recipes: the paper's tables as functions, and a tiny variant of each that runs on a CPU."""
