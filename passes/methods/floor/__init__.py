"""Controls: what any method is measured against: the choice looks at no picture."""

TITLE = "Controls"
PLACE = 6
