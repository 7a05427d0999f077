"""Vision-language models: tokens of a picture that the language model does not need to read."""

TITLE = "Vision-language"
PLACE = 4.5
