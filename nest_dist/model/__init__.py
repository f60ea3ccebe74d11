"""NesT and its layers (arXiv 2105.12723), as Linen modules."""
