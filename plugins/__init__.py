"""CUDA kernels, TensorRT plugins and the host build of the same kernels."""
