"""Settings of the whole suite."""

import os

# two workers with two threads each on two cores spend their time waiting for each other
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
