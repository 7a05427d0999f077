"""What reductions cost in ONNX Runtime on a CPU, beside what they save: merging, and choices made one after the other."""
