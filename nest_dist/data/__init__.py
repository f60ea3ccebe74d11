"""From storage to the global batch of a step, a pure function of seed and step."""
