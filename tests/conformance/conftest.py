"""Other people's published clients, each in a virtual environment of its own, made once below .cache/conformance."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import environments
import servers
from amounts import FULL
from boxwood.engine.proxy.authority import make
from scenarios import table
from scenarios.interpreters import close_all, interpreter
from scenarios.play import FACE, script, with_face
from scenarios.seen import SEEN, Surface, note

CACHE = Path(__file__).parents[2] / ".cache/conformance"
CLIENTS = Path(__file__).parent / "clients"
RECORDER = Path(__file__).parents[1] / "scenarios/recorder.cjs"
WRITING = os.environ.get("BOXWOOD_COMPATIBILITY") == "write"
BESIDE = ["websocket-client>=1.7"]  # what terminals of arker need: one environment of a release for all tests
FIRST = ("0.1.0", "0.2.1")  # of arker, which know no terminals
ONE_AUTHORITY, _ = make()  # else clients read all of the host's whenever they are made, although they use plain http
MODULES = {"agentkernel-sdk": "agentkernel", "arker": "arker", "arl-env": "arl"}  # by package


@pytest.fixture
def check_tables(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`check_tables(family)`, at the end of a file: docs/compatibility.md tells what the file's tests have seen.

    `make compatibility` makes it so. When only some of the file's tests run, as in `make test`, only `noted` looks at
    what they see.
    """
    given = request.config.option
    chosen = given.keyword or getattr(given, "lf", False) or given.deselect or given.markexpr
    whole = not chosen and not any("::" in argument for argument in request.config.args)

    def check(family: str) -> None:
        told = table.block(family)
        rows = table.parse(told)
        if whole:
            seen = table.every(family, SEEN)
            absent = set(table.clients(family)) - {client for client, _ in seen}
            assert absent <= ({*table.NPM} if shutil.which("node") is None else set()), absent
            rows = {key: row for key, row in rows.items() if key[0] in absent} | table.settled(seen)
        text = table.render(family, rows)
        if WRITING:
            assert whole, "only all the tests of a file can tell"
            table.write(family, text)
        assert text == table.block(family), "make compatibility writes it as it is"

    return check


def noted(client: str, seen: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """What a script did; the test fails if the document tells otherwise."""
    note(client, seen)
    for family in table.FAMILIES:
        if client in table.clients(family) and not WRITING:
            now: Surface = {kind: {name: set(of) for name, of in methods.items()} for kind, methods in seen.items()}
            told = table.parse(table.block(family))
            assert not (wrong := table.denied(told, table.found(family, client, now))), wrong


def python_of(package: str, version: str, *more: str) -> Path:
    """The interpreter of an environment that holds this release, with `more` (requirements), and nothing of ours."""
    if package == "arker" and version not in FIRST:
        more = (*BESIDE, *more)
    try:
        return environments.python_of(CACHE, f"{package}=={version}", *more)
    except environments.CannotInstall as error:
        pytest.fail(str(error), pytrace=False)


def node_home(package: str, version: str) -> Path:
    """A directory whose node_modules holds this release."""
    home = CACHE / f"node-{package}-{version}"
    home.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            (home / "package.json").write_text('{"private": true}')
            npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", f"{package}@{version}"]
            done = subprocess.run(npm, cwd=home, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.fail(f"cannot install {package} {version}: {done.stderr[-2000:]}", pytrace=False)
            (home / "ready").touch()
    return home


def drive(
    package: str, version: str, script: str, case: str, home: Path, more: Sequence[str] = (), **environment: str
) -> str:
    """What one case of a script in `clients/` prints, driven with that release; what its methods do is noted."""
    return ran(package, version, CLIENTS / f"{script}.py", [version, case], home, environment, more)


def ran(
    package: str,
    version: str,
    script: Path,
    argv: Sequence[str],
    home: Path,
    environment: Mapping[str, str],
    more: Sequence[str] = (),
) -> str:
    """What a script prints, with that release of a client, and `more` packages beside it."""
    python = python_of(package, version, *more)
    authorities = home / "authorities.pem"
    authorities.write_bytes(ONE_AUTHORITY)
    surroundings = {"PATH": os.environ["PATH"], "HOME": str(home), "SSL_CERT_FILE": str(authorities), **environment}
    done = interpreter(python, MODULES[package]).run(script, argv, home, surroundings)
    noted(f"{package} {version}", done.seen)
    if done.returncode:
        said = f"{done.stderr[-6000:]}{done.stdout[-2000:]}"
        pytest.fail(f"{package} {version}, {script.stem} {' '.join(argv)}:\n{said}", pytrace=False)
    print(done.stderr, file=sys.stderr)
    return done.stdout


@pytest.fixture(scope="session", autouse=True)
def interpreters() -> Iterator[None]:
    """None of them is left when the tests are over."""
    yield
    close_all()


@pytest.fixture
def published(boxwood_server: servers.Server, tmp_path: Path) -> Callable[[str, str, str, str], str]:
    """`published(package, version, script, case)`: a case of a script in `clients/` with that release; what it prints."""

    def run(package: str, version: str, script: str, case: str, *more: str) -> str:
        return drive(package, version, script, case, tmp_path, more, **addresses(boxwood_server, tmp_path))

    return run


@pytest.fixture
def played(boxwood_server: servers.Server, tmp_path: Path) -> Callable[[str, str, str], dict[str, Any]]:
    """`played(scenario, package, version)`: what is observed, with that release or (version `FACE`) with our face."""

    def run(name: str, package: str, version: str) -> dict[str, Any]:
        environment = addresses(boxwood_server, tmp_path)
        if version == FACE:
            return with_face(name, MODULES[package], tmp_path, environment)
        seen: dict[str, Any] = json.loads(
            ran(package, version, script(name), [MODULES[package]], tmp_path, environment)
        )
        return seen

    return run


def addresses(server: servers.Server, home: Path) -> dict[str, str]:
    """Where the clients find a server, in their own variables of the environment."""
    cluster, user = {"server": f"{server.url}/k8s"}, {"token": server.key}
    parts = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    }
    kubeconfig = home / "kubeconfig"
    kubeconfig.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "x", **parts}))
    ours = {"BOXWOOD_URL": server.url, "BOXWOOD_API_KEY": server.key, "KUBECONFIG": str(kubeconfig)}
    arl = {"ARL_GATEWAY_URL": f"{server.url}/arl", "ARL_API_KEY": server.key}
    urls = {f"{client}_BASE_URL": server.url for client in ("AGENTKERNEL", "ARKER", "ARKER_CONTROL")}
    keys = {f"{client}_API_KEY": server.key for client in ("AGENTKERNEL", "ARKER")}
    sizes = {"BOXWOOD_TEST_FULL": str(int(FULL))}
    return {**urls, **keys, **ours, **arl, **sizes, "ARKER_SOURCE": "ubuntu"}


@pytest.fixture
def agentkernel_node(boxwood_server: servers.Server, tmp_path: Path) -> Callable[[str], None]:
    """`agentkernel_node(case)`: with npm's agentkernel 0.18.1."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js")
    home = node_home("agentkernel", "0.18.1")

    def run(case: str) -> None:
        seen = tmp_path / "seen"
        environment = {
            "PATH": os.environ["PATH"],
            "AGENTKERNEL_API_KEY": boxwood_server.key,
            "AGENTKERNEL_BASE_URL": boxwood_server.url,
            "SEEN": str(seen),
        }
        command = [node, "-r", str(RECORDER), str(CLIENTS / "agentkernel_node.cjs"), str(home), case]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"agentkernel of npm, {case}:\n{done.stderr[-6000:]}", pytrace=False)
        noted("npm agentkernel 0.18.1", json.loads(seen.read_text()))

    return run


@pytest.fixture(scope="session")
def arl_gateway_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A server that holds requests of ARL's gateway for a moment only: what takes longer is answered with 202."""
    server = servers.Server(tmp_path_factory.mktemp("arl") / "data", arl_hold_seconds=0.5).start()
    yield server
    server.down()


@pytest.fixture
def arl_gateway_case(
    arl_gateway_server: servers.Server, boxwood_server: servers.Server, tmp_path: Path
) -> Callable[..., str]:
    """`arl_gateway_case(version, case)`: with that release of arl-env; what the case prints. `hold`: with a server that
    holds requests as long as it does by default."""

    def run(version: str, case: str, *, hold: bool = False) -> str:
        server = boxwood_server if hold else arl_gateway_server
        environment = {"ARL_API_KEY": server.key, "ARL_GATEWAY_URL": f"{server.url}/arl"}
        return drive("arl-env", version, "arl_gateway", case, tmp_path, **environment)

    return run


@pytest.fixture(scope="session")
def kubeconfig(boxwood_server: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `boxwood kubeconfig` writes it, for https."""
    file = tmp_path_factory.mktemp("kube") / "config"
    command = [sys.executable, "-c", "from boxwood.cli.main import main; main()", "kubeconfig"]
    subprocess.run(
        [*command, "--data", str(boxwood_server.data), "--output", str(file)], check=True, capture_output=True
    )
    return file


@pytest.fixture
def arl_kubernetes_cases(kubeconfig: Path, tmp_path: Path) -> Callable[..., None]:
    """`arl_kubernetes_cases(version, kubernetes, case…)`: with these releases of arl-env and of the official client."""

    def run(version: str, kubernetes: str, *cases: str) -> None:
        python = python_of("arl-env", version, f"kubernetes=={kubernetes}")
        surroundings = {"KUBECONFIG": str(kubeconfig), "KUBERNETES_VERSION": kubernetes, "HOME": str(tmp_path)}
        done = subprocess.run(
            [python, "-I", CLIENTS / "arl_crd.py", version, *cases],
            env={"PATH": os.environ["PATH"], **surroundings},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"arl-env {version}:\n{done.stderr[-6000:]}{done.stdout[-2000:]}", pytrace=False)

    return run
