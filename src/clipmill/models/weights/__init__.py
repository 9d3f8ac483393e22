"""Weights that other libraries published, by address: files, configs, tensors."""
