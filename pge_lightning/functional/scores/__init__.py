"""Scores of how well a source's features or predictions suit a target's labels, as pure functions."""
