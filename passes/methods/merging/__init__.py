"""Merging pairs: each token that leaves joins the one it resembles most."""

TITLE = "Merging pairs"
PLACE = 1
