"""What we measure about ourselves, and the pages of docs/results; `python -m tokenrt.perf.bench NAME`."""
