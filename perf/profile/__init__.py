"""Time: whole models in pairs, the blocks it is in, on this machine and on devices."""
