"""How fast: `python -m benchmarks` runs all, `python -m benchmarks.td3` one. docs/performance.md has the tables."""
