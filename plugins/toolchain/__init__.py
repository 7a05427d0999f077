"""What compiles the kernels: nvcc and where it comes from, C++ compilers, headers, what the machine code tells."""
