"""Commands of their own: what becomes of the figures over training steps, objectives, lengths and raters."""
