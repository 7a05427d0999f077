"""What no reduction can follow: attentions inside other operators, and operators that look like attention and are none."""
