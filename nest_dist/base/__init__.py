"""What everything stands on: checks, tree names, failures. Imports nothing of ours."""
