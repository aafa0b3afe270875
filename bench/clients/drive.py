"""What all drivers do: for each line on standard input that names a step, take it and print its milliseconds.

A driver runs in the environment of a published client, with nothing of Boxwood.
"""

import sys
import time


def serve(steps):
    """`steps`: functions by name, each of which returns its own milliseconds."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(steps[line.strip()](), flush=True)


def timed(step):
    """What `step` returns, and the milliseconds that it took."""
    began = time.perf_counter()
    result = step()
    return result, (time.perf_counter() - began) * 1e3
