"""Caches of language models: which entries stay for the words to come."""

TITLE = "Caches"
PLACE = 5.3
