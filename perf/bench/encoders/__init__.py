"""Trained encoders of text and of speech, reduced by every method: what is left of what they say."""
