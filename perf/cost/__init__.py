"""What operators and sites cost on a GPU, as a model: launches, blocks, waves and time. Nothing here was measured on a GPU."""
