"""Drawn examples: fewer than usual, and none is refused for the time that it takes."""

from hypothesis import settings

settings.register_profile("data tools", max_examples=60, deadline=None)
settings.load_profile("data tools")
