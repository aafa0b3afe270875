"""What the faces offer: the documented names, lazily loaded, in both forms, documented."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from boxwood.faces import agentkernel, arker, arl
from surfaces import surface

DOCS = Path(__file__).parents[2] / "docs/faces.md"
PAIRS = [
    (agentkernel.AgentKernel, agentkernel.AsyncAgentKernel),
    (agentkernel.SandboxSession, agentkernel.AsyncSandboxSession),
]


@pytest.mark.parametrize("face", ["arker", "agentkernel", "arl"])
def test_importing_a_face_loads_no_sdk(face: str) -> None:
    heavy = ("httpx2", "msgspec", "asyncio", "boxwood.client", "kubernetes")
    code = f"import sys, boxwood.faces.{face}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("face", [arker, agentkernel, arl], ids=["arker", "agentkernel", "arl"])
def test_names_are_sorted_and_there(face: object) -> None:
    names: list[str] = face.__all__  # type: ignore[attr-defined]
    assert names == sorted(set(names)) and set(names) <= set(dir(face))
    assert [getattr(face, name).__name__ for name in names] == names
    text = DOCS.read_text()
    assert [name for name in names if f"`{name}" not in text] == []
    with pytest.raises(AttributeError):
        _ = face.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(("blocking", "awaitable"), PAIRS)
def test_both_forms_have_the_same_methods_and_parameters(blocking: type, awaitable: type) -> None:
    assert surface(blocking) == {name: said for name, said in surface(awaitable).items() if name != "__await__"}


@pytest.mark.parametrize(
    "kind",
    [arker.Arker, arker.Computer, arl.SandboxSession, arl.WarmPoolManager, *(kind for pair in PAIRS for kind in pair)],
)
def test_every_public_method_says_what_it_does(kind: type) -> None:
    assert inspect.getdoc(kind)
    for name, member in inspect.getmembers(kind, inspect.isfunction):
        assert name.startswith("_") or inspect.getdoc(member), f"{kind.__name__}.{name}"


def test_the_documented_methods_are_there() -> None:
    documented = {
        arker.Arker: "vm fork list list_vms create_filesystem list_filesystems delete_filesystem",
        arker.Computer: "id fork run resize delete sync create_sync list_syncs delete_sync",
        agentkernel.AgentKernel: "health run run_stream list_sandboxes create_sandbox get_sandbox remove_sandbox "
        "exec_in_sandbox sandbox close __enter__",
        agentkernel.AsyncAgentKernel: "health run run_stream list_sandboxes create_sandbox get_sandbox remove_sandbox "
        "exec_in_sandbox sandbox close __aenter__",
        agentkernel.SandboxSession: "run info remove",
        arl.SandboxSession: "create_sandbox delete_sandbox execute execute_with_callback register_callback "
        "unregister_callback get_pool_status create_interactive_shell __enter__",
        arl.WarmPoolManager: "create_warmpool get_warmpool wait_for_warmpool_ready delete_warmpool",
    }
    missing = [(kind, name) for kind, names in documented.items() for name in names.split() if not hasattr(kind, name)]
    assert missing == []
    assert issubclass(arker.ArkerError, Exception) and issubclass(agentkernel.AgentKernelError, Exception)


def test_arls_documented_parameters() -> None:
    def defaults(call: Callable[..., object]) -> dict[str, object]:
        parameters = inspect.signature(call).parameters.values()
        return {p.name: None if p.default is p.empty else p.default for p in parameters if p.kind is not p.KEYWORD_ONLY}

    session = {"pool_ref": None, "namespace": "default", "keep_alive": False, "timeout": "30s"}
    assert defaults(arl.SandboxSession) == session | {"idle_timeout_seconds": None}
    assert defaults(arl.WarmPoolManager) == {"namespace": "default", "timeout": 300}
    assert list(defaults(arl.WarmPoolManager.create_warmpool))[1:5] == ["name", "image", "sidecar_image", "replicas"]


def test_modules_of_a_face_are_found_by_their_names() -> None:
    assert importlib.import_module("boxwood.faces.arker").Arker is arker.Arker
