"""The tests, two workers on two cores: before anything imports torch, how its threads are to behave."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Two threads that wait for each other awake, while the other worker runs, take eight times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
