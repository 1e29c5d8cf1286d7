"""For all tests: one thread for each process, as several run at a time and would wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
