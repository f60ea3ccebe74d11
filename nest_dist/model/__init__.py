"""NesT and its parts (arXiv 2105.12723), as Linen modules."""
