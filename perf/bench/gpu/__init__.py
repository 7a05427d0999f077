"""What is known of the kernels and engines without a GPU, and `make gpu`, which measures where there is one."""
