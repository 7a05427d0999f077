"""What each method loses, on a classifier and on a saliency model, and why one loses."""
