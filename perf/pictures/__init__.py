"""Photographs with their tokens drawn in: which patches stayed, which were joined, which left."""
