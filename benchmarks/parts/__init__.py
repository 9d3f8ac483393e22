"""What ``benchmarks/bench.py`` compares: a module a part, each with its ``CASES``."""
