"""Small seeded vision parts of every family that `export --part vision` knows, and every method of theirs through each."""
