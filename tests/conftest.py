"""Eight devices for the tests of this process: the machine's cores, seen as separate ones."""

import os

# Before JAX starts; commands that a test starts are told their own number.
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
