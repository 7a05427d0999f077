"""A choice among the tokens of an output: as a plan says it, how it is made, and what a host is told of it."""
