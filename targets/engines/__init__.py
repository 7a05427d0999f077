"""What every builder of engines shares: batch sizes, and engines kept by what they were built from."""
