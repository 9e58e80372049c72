"""Made-up corpora that benchmarks and tests share, each from a seed."""
