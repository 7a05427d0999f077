"""Engines by TensorRT-RTX, built in a process of its own, with no GPU."""
