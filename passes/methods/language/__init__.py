"""Inside language models: tokens that later layers of a prefill no longer need."""

TITLE = "Language"
PLACE = 4.7
