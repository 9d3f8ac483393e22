"""Parsing and encoding of V1 and V2 requests and responses."""
