"""The tests, two workers on two cores: before anything imports torch, how its threads are to behave."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # two threads that wait for each other while others run take 8 times as long
