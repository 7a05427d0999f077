"""Clustering: tokens are grouped, and every group becomes one."""

TITLE = "Clustering"
PLACE = 3
