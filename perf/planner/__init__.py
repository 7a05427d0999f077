"""What plans cost and what they harm, so that a search can choose: work, memory, latency, sensitivity."""
