"""A run: what it is, built, resumed, checked before it starts."""
