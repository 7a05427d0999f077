"""What is there: attention and its blocks, the token axis through every operator, the grid; pure functions of a graph."""
