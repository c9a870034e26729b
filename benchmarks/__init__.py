"""Side-by-side timings against published packages; `python -m benchmarks.<name>` runs one."""
