"""What methods read: of an attention in a graph, and of the same tokens in another order, in part or in units."""
