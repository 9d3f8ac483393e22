"""Encoders in other libraries' formats, with equal outputs: one module a format."""
