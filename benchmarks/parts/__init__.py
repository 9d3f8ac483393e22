"""Parts of ``benchmarks/bench.py``: a module each, with its ``CASES``."""
