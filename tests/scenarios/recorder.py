"""What becomes of every public method of a client's classes while its scripts run, for docs/compatibility.md.

**How a case is recorded:** nothing is to be done in it. Every script that is run with `drive(package, version, script,
case, home, …)` of `tests/conformance/conftest.py` is, if its package's classes are named in CLASSES below; a method that
works and is told to be anything else fails that test. `table.py` lays the tables out; what has to be called so that
every cell is known are the `surface` cases.

A call of the script's own is noted, not those that the client makes of itself meanwhile. Runs in the client's own
interpreter: `warm.py`.
"""

import functools
import inspect
import json
from contextvars import ContextVar

# By the module's name: the classes whose methods are the client's surface. What a release does not have is left out.
CLASSES = {
    "agentkernel": ("AgentKernel", "AsyncAgentKernel", "SandboxSession", "AsyncSandboxSession"),
    "arker": ("Arker", "Computer", "VM", "Sync"),
    "arl": (
        "SandboxSession", "ManagedSession", "DevboxSession", "WarmPoolManager", "GatewayClient",
        "InteractiveShellClient", "AsyncSandboxSession", "AsyncManagedSession", "AsyncDevboxSession",
        "AsyncGatewayClient",
    ),
}  # fmt: skip
# Texts of which one is in every answer of this server that refuses what it does not have.
REFUSALS = ("not supported", "unsupported", "not implemented", "not_implemented", "this server has none")

_inside = ContextVar("_inside", default=False)
_seen = {}


def install(module):
    """Wraps the methods; of a module that is not in CLASSES nothing."""
    for kind in _classes(module):
        for name, member in _methods(kind).items():
            _wrap(kind, name, member)


def save(module, path):
    """Class → method → what became of its calls, an empty list where there was none."""
    found = {kind.__name__: {name: [] for name in _methods(kind)} for kind in _classes(module)}
    for (kind, name), outcomes in _seen.items():
        found[kind][name] = sorted(outcomes)
    with open(path, "w") as file:
        json.dump(found, file)


def _classes(module):
    return [getattr(module, name) for name in CLASSES.get(module.__name__, ()) if hasattr(module, name)]


def _methods(kind):
    names = [name for name in dir(kind) if not name.startswith("_")]
    members = {name: inspect.getattr_static(kind, name) for name in names}
    return {
        name: m for name, m in members.items() if inspect.isfunction(m) or isinstance(m, (classmethod, staticmethod))
    }


def _wrap(kind, name, member):
    function = member if inspect.isfunction(member) else member.__func__
    noted = functools.partial(_note, kind.__name__, name)
    wrapped = (_coroutine if inspect.iscoroutinefunction(function) else _call)(function, noted)
    functools.update_wrapper(wrapped, function)
    setattr(kind, name, wrapped if inspect.isfunction(member) else type(member)(wrapped))


def _call(function, noted):
    def wrapper(*args, **named):
        if _inside.get():
            return function(*args, **named)
        with _Outcome(noted) as outcome:
            result = function(*args, **named)
            if inspect.isgenerator(result) or inspect.isasyncgen(result):
                outcome.later()
                return _generator(result, noted) if inspect.isgenerator(result) else _async_generator(result, noted)
            return result

    return wrapper


def _coroutine(function, noted):
    async def wrapper(*args, **named):
        if _inside.get():
            return await function(*args, **named)
        with _Outcome(noted) as outcome:
            result = await function(*args, **named)
            if inspect.isasyncgen(result):
                outcome.later()
                return _async_generator(result, noted)
            return result

    return wrapper


def _generator(inner, noted):
    with _Outcome(noted, nested=False):
        yield from inner


async def _async_generator(inner, noted):
    with _Outcome(noted, nested=False):
        async for item in inner:
            yield item


class _Outcome:
    """Around a call; `nested`: what the client calls of itself until the end is not noted."""

    def __init__(self, noted, nested=True):
        self._noted = noted
        self._token = _inside.set(True) if nested else None
        self._later = False

    def later(self):
        """The call has only begun: what it returned tells more."""
        self._later = True

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self._token is not None:
            _inside.reset(self._token)
        if error is None or isinstance(error, GeneratorExit):
            if not self._later:
                self._noted("works")
        else:
            self._noted(_verdict(error))


def _verdict(error):
    """refused: this server says that it does not have that. broken: the client's own code fails. failed: anything
    else, such as a sandbox that is not there."""
    said = f"{getattr(error, 'code', '')} {error}".lower()
    if any(text in said for text in REFUSALS):
        return "refused"
    return "broken" if isinstance(error, (AttributeError, NameError, TypeError)) else "failed"


def _note(kind, name, outcome):
    _seen.setdefault((kind, name), set()).add(outcome)
