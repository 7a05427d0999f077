"""Text encoders: bytes, parts of words and words that few need."""

TITLE = "Text"
PLACE = 5.1
