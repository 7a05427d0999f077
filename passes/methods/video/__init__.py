"""Video clips: tokens of frames that show the same leave."""

TITLE = "Video clips"
PLACE = 5
