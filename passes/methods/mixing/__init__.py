"""Mixing by a matrix: every token that stays is a weighted sum of all."""

TITLE = "Mixing by a matrix"
PLACE = 4
