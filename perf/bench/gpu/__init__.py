"""What is known of the kernels without a GPU: resources, occupancy, the work of an operator."""
