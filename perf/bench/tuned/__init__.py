"""What a search for a plan finds, beside what a person would have picked, on data that it has not seen."""
