"""What the front page shows: the demonstration's numbers and picture, and a table of results for real models."""
