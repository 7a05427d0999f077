"""Latency by plan, without running it: parts of a block measured against token counts, and added up again."""
