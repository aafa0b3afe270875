"""What scenarios share. They run in the clients' own interpreters, on the standard library alone: `SCENARIO.py CLIENT`.

A scenario is a list of steps. Each calls public methods as a user of the client would and returns what could be
observed: outputs, exit codes, classes and statuses of errors, never an id or a time. A step's decorator has what is
expected, whichever client it is; where one differs, the scenario's DIFFERENCES say how and why. Printed: all
observations, as JSON.
"""

import importlib
import json
import secrets
import sys
import traceback


class Scenario:
    """`expected`: step → what is observed with every client, unless the scenario's DIFFERENCES have another."""

    def __init__(self):
        self.steps = {}
        self.expected = {}

    def step(self, expected):
        def add(function):
            self.steps[function.__name__] = function
            self.expected[function.__name__] = expected
            return function

        return add

    def play(self):
        """Every step, with the client that the command line names; an exception is an observation too."""
        module, seen = importlib.import_module(sys.argv[1]), {}
        for name, function in self.steps.items():
            try:
                seen[name] = function(module)
            except Exception as error:
                traceback.print_exc()
                seen[name] = raised(error)
        print(json.dumps(seen))


def raised(error):
    return {"raised": type(error).__name__}


def refusal(step, *attributes, says=()):
    """How a step is refused: the error's class, its attributes, and which of `says` its text has."""
    try:
        got = step()
    except Exception as error:
        text = str(error)
        return [
            type(error).__name__,
            *(getattr(error, name, None) for name in attributes),
            *(t for t in says if t in text),
        ]
    raise AssertionError(f"not refused: {got!r}")


def fresh(prefix="s"):
    """A name that nothing has yet."""
    return f"{prefix}-{secrets.token_hex(6)}"
