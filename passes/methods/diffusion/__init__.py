"""Diffusion and generation: regions that rest for a step, tokens folded into one."""

TITLE = "Diffusion and generation"
PLACE = 5.2
