"""Making sessions: out of a pool that is named or that has the image, else out of the image itself."""

from __future__ import annotations

from typing import Any

from msgspec import field

from boxwood.core.errors import BadRequest, NotFound, Unsupported
from boxwood.core.model import VM, ClaimRequest, ForkRequest, Pool, Resources
from boxwood.dialects.arl import steps as arl_steps
from boxwood.dialects.arl import templates
from boxwood.dialects.arl_gateway import poolfacts, snapshots, words
from boxwood.dialects.arl_gateway.envelope import Lenient, now
from boxwood.dialects.arl_gateway.gateway import Gateway
from boxwood.dialects.arl_gateway.session import DEVBOX, Event, Facts, Port, Session
from boxwood.server.exchange import Exchange

IDLE_SECONDS = 600
DEVBOX_SECONDS = 4 * 3600
MOST_PORTS = 64
LABEL = "arl/session"


class DevboxPort(Lenient, frozen=True, kw_only=True):
    port: int
    protocol: str | None = None
    name: str | None = None


class GitConfig(Lenient, frozen=True, kw_only=True):
    name: str | None = None
    email: str | None = None


class Devbox(Lenient, frozen=True, kw_only=True):
    ports: list[DevboxPort] | None = None
    ssh_keys: list[str] | None = field(name="sshPublicKeys", default=None)
    git: GitConfig | None = field(name="gitConfig", default=None)
    storage: str | None = field(name="storageSize", default=None)

    def refuse_later(self) -> None:
        """Unsupported."""
        for name, given in (("sshPublicKeys", self.ssh_keys), ("storageSize", self.storage)):
            if given:
                raise Unsupported(f"devbox.{name}: not supported by this server")


class EnvVar(Lenient, frozen=True, kw_only=True):
    name: str
    value: str | None = None
    value_from: Any = field(name="valueFrom", default=None)


class ConfigEnv(Lenient, frozen=True, kw_only=True):
    variables: dict[str, str] | None = field(name="vars", default=None)
    config_maps: list[Any] | None = field(name="configMaps", default=None)
    secrets: list[Any] | None = None
    env_vars: list[EnvVar] | None = field(name="envVars", default=None)

    def env(self) -> dict[str, str]:
        """BadRequest, Unsupported."""
        if self.config_maps or self.secrets:
            raise Unsupported(
                "configEnv: configMaps and secrets are not supported by this server; vars and envVars are"
            )
        if any(one.value_from is not None for one in self.env_vars or ()):
            raise Unsupported("configEnv.envVars: valueFrom is not supported by this server")
        given = (self.variables or {}) | {one.name: one.value or "" for one in self.env_vars or ()}
        return words.variables("configEnv", given)


class CreateBody(Lenient, frozen=True, kw_only=True):
    """`pool_ref`: of clients before 0.15. What bounds lives or scales pools is theirs too, and ignored."""

    image: str | None = None
    profile: str | None = None
    pool_ref: str | None = field(name="poolRef", default=None)
    namespace: str | None = None
    mode: str | None = None
    devbox: Devbox | None = None
    config_env: ConfigEnv | None = field(name="configEnv", default=None)
    idle_seconds: int | None = field(name="idleTimeoutSeconds", default=None)
    allocation_seconds: int | None = field(name="allocationTimeoutSeconds", default=None)
    private_containers: list[Any] | None = field(name="privateContainers", default=None)
    allow_internet: bool | None = field(name="allowInternet", default=None)
    experiment: str | None = field(name="experimentId", default=None)
    resources: dict[str, dict[str, Any] | None] | None = None
    tools: Any = None

    def refuse_later(self) -> None:
        """Unsupported."""
        if self.private_containers:
            raise Unsupported("privateContainers: not supported by this server")
        if self.tools:
            raise Unsupported("tools: not supported by this server")
        if self.devbox is not None:
            self.devbox.refuse_later()


async def create(exchange: Exchange, there: Gateway, wanted: CreateBody, *, managed: bool = False) -> Session:
    """Made, booted and ready, or not there at all. BadRequest, NotFound (pool), Unsupported, CapacityUnavailable."""
    if not wanted.image and not wanted.profile and not wanted.pool_ref:
        raise BadRequest("image or profile is required")
    if wanted.mode not in (None, "", DEVBOX):
        raise BadRequest(f"invalid mode {(wanted.mode or '')[:80]!r}: only {DEVBOX} is there")
    if (wanted.allocation_seconds or 0) < 0:
        raise BadRequest("allocationTimeoutSeconds must not be negative")
    if wanted.profile:
        words.label("profile", wanted.profile)
    devbox = wanted.mode == DEVBOX
    idle = words.idle_seconds(wanted.idle_seconds, DEVBOX_SECONDS if devbox else IDLE_SECONDS)
    pool = await _pool(exchange, wanted)
    image = words.normalised(wanted.image) if wanted.image else poolfacts.of(pool).image if pool else ""
    session_id = words.new_session_id(image or (pool.name if pool else ""))
    env = (wanted.config_env.env() if wanted.config_env else {}) | _devbox_env(wanted.devbox)
    vm = await _vm(exchange, wanted, pool, session_id, float(idle))
    base: VM | None = None
    try:
        if pool is not None and not templates.of_image(pool):
            base = await _base(exchange, vm, session_id)
        await there.core.vms.start(exchange.caller, vm.vm_id)
        if pool is None or not templates.has(pool, (words.WORKSPACE,)):
            await arl_steps.make_directory(there.core, exchange.caller, vm.vm_id, words.WORKSPACE)
        facts = Facts(
            vm=vm.vm_id,
            base=(vm.root_source_id or vm.vm_id) if base is None else base.vm_id,
            base_owned=base is not None,
            sandbox=session_id,
            owner=exchange.caller.key_id,
            image=image,
            profile=wanted.profile or (poolfacts.of(pool).profile if pool else "") or poolfacts.PROFILE,
            created_at=now(),
            idle_seconds=idle,
            pool="" if pool is None else pool.name,
            namespace=words.NAMESPACE if pool is None else pool.namespace,
            mode=DEVBOX if devbox else "",
            env=env,
            experiment=wanted.experiment or "",
            managed=managed,
            ports=_ports(wanted.devbox),
            old_client=bool(wanted.pool_ref),
            events=[Event(now(), f"session created from {image or 'pool ' + (pool.name if pool else '')}")],
        )
        return await there.add(exchange.caller, session_id, facts)
    except BaseException:
        for one in (vm, base):
            if one is not None:
                there.core.vms.discard(exchange.caller, one.vm_id)
        raise


async def _pool(exchange: Exchange, wanted: CreateBody) -> Pool | None:
    """The pool to claim from. NotFound."""
    pools, caller = exchange.core.pools, exchange.caller
    if wanted.pool_ref:
        try:
            return pools.get(caller, wanted.pool_ref, wanted.namespace or words.NAMESPACE)
        except NotFound:
            raise NotFound("pool", f"pool {wanted.pool_ref[:80]} not found") from None
    profile = wanted.profile or poolfacts.PROFILE
    found = [pool for pool in await pools.list(caller, words.NAMESPACE) if pool.state == "running"]
    found = [pool for pool in found if poolfacts.of(pool).profile == profile]
    if wanted.image:
        if wanted.allow_internet is not None:
            mode = "internet" if wanted.allow_internet else "none"
            found = [pool for pool in found if pool.network == mode]
        image = words.normalised(wanted.image)
        asked = words.resources(wanted.resources)
        found = [pool for pool in found if poolfacts.of(pool).image == image and _fits(asked, pool.resources)]
    best = max(found, key=lambda pool: pool.ready, default=None)
    if best is None and not wanted.image:
        raise NotFound("pool", f"no pool found for profile {profile}")
    return best


def _fits(asked: Resources, there: Resources) -> bool:
    return asked.vcpu in (None, there.vcpu) and asked.memory_mib in (None, there.memory_mib)


async def _vm(exchange: Exchange, wanted: CreateBody, pool: Pool | None, session_id: str, idle: float) -> VM:
    core, caller, labels = exchange.core, exchange.caller, {LABEL: session_id}
    ttl = idle + 1
    if pool is not None:
        return await core.pools.claim(caller, pool.name, pool.namespace, ClaimRequest(ttl=ttl, labels=labels))
    assert wanted.image
    source = words.source(exchange, wanted.image)
    network = None if wanted.allow_internet is None else "internet" if wanted.allow_internet else "none"
    request = ForkRequest(
        source_id=source.source_id,
        source_name=source.source_name,
        resources=words.resources(wanted.resources),
        network=network,
        ttl=ttl,
        labels=labels,
    )
    return await core.vms.fork(caller, request)


async def _base(exchange: Exchange, vm: VM, session_id: str) -> VM:
    """How a VM was before anything was done in it, where no image shows that."""
    request = ForkRequest(
        source_id=vm.vm_id, labels={snapshots.LABEL: session_id}, ttl=snapshots.KEPT_SECONDS, hidden=True
    )
    return await exchange.core.vms.fork(exchange.caller, request)


def _devbox_env(devbox: Devbox | None) -> dict[str, str]:
    git = None if devbox is None else devbox.git
    given = {} if git is None else {"ARL_DEVBOX_GIT_USER_NAME": git.name, "ARL_DEVBOX_GIT_USER_EMAIL": git.email}
    return {name: value for name, value in given.items() if value}


def _ports(devbox: Devbox | None) -> list[Port]:
    ports = (devbox.ports if devbox is not None else None) or []
    if len(ports) > MOST_PORTS or not all(1 <= one.port <= 65535 for one in ports):
        raise BadRequest(f"devbox.ports: at most {MOST_PORTS}, each 1 to 65535")
    return [
        Port(name=(one.name or f"port-{at}")[:63], container_port=one.port, protocol=(one.protocol or "tcp")[:16])
        for at, one in enumerate(ports, 1)
    ]
