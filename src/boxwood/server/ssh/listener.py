"""The listener for SSH: its host key, what it speaks and what it does not."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh

from boxwood.core.core import Core
from boxwood.core.signing import secret_file
from boxwood.server.ssh.channel import Channel
from boxwood.server.ssh.login import Doorkeeper, Login

LOGIN_SECONDS = 20
KEEPALIVE_SECONDS = 30
HOST_KEY = "ssh_host_key"  # in the data directory
asyncssh.set_log_level(logging.ERROR)


@asynccontextmanager
async def listening(core: Core, host: str, port: int) -> AsyncIterator[int]:
    """Until it is left: the port. OSError: it cannot be had."""
    keeper, open_ = Doorkeeper(), set[Login]()

    def recheck(vm_id: str) -> None:
        """Keys or rules of a VM have changed."""
        for login in tuple(open_):
            if login.vm == vm_id and not core.logins.still(login.vm, login.fingerprint, login.address):
                login.end()

    hooks = core.vms.settings.keys_changed_hooks, core.policies.changed_hooks
    for of_one in hooks:
        of_one.append(recheck)
    acceptor = await asyncssh.listen(
        host, port, server_host_keys=[host_key(core.config.data / HOST_KEY)],
        server_factory=lambda: Login(core, keeper, open_.add, open_.discard, lambda: Channel(core)),
        encoding=None, line_editor=False, login_timeout=LOGIN_SECONDS,
        keepalive_interval=KEEPALIVE_SECONDS, agent_forwarding=False, x11_forwarding=False, allow_scp=False,
        gss_host=None, compression_algs=None, server_version="Boxwood", password_auth=False, kbdint_auth=False,
        host_based_auth=False, authorized_client_keys=None,
    )  # fmt: skip
    try:
        yield acceptor.get_port()
    finally:
        for of_one in hooks:
            of_one.remove(recheck)
        acceptor.close()
        for login in tuple(open_):
            login.end()
        await acceptor.wait_closed()


def host_key(path: Path) -> asyncssh.SSHKey:
    """Made when it is first wanted; 0600."""
    fresh = asyncssh.generate_private_key("ssh-ed25519", comment="boxwood").export_private_key()
    return asyncssh.import_private_key(secret_file(path, fresh))
