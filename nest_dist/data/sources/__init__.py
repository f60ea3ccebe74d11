"""Data sets, one file each; each alone imports the library it reads with."""
