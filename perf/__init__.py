"""Cost model, latency measurement, demonstration and reports."""
