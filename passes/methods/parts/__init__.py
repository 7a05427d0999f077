"""What methods share: the steps, scores, similarities, clusters, windows and trained tensors they are put together from."""
