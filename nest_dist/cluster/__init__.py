"""The processes of a run: discovered, started, supervised, stopped together."""
