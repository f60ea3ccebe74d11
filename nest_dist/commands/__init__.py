"""Programs: flags, gin, wiring; the one place where all parts meet."""
