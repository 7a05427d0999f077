"""Pruning by a score: tokens leave by a number each of them gets, and are dropped or stand by."""

TITLE = "Pruning by a score"
PLACE = 2
