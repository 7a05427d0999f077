"""The kernels on the CPU: compiled for it, called as operators, run inside whole models."""
