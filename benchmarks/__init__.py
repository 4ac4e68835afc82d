"""Measures the package side by side with its rivals; see ``benchmarks/README.md``."""
