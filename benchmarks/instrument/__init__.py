"""The instrument: what the benchmarks share, one concept in each module."""
