"""Why a model says what it says: paths through the tree of blocks, activation maps, attention."""
