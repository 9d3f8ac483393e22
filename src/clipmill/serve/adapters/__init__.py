"""Adapters between the server and each kind of model."""
