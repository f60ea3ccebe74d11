"""One file for each command, and `cli`, which starts them: the only place where all meet."""
