"""What the engine of this host does to networks of boxes: it tells router and proxy what holds, and asks them."""

from __future__ import annotations

import asyncio
import logging
import socket
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from boxwood.engine.api import Box, EngineError, EngineUnavailable, Usage
from boxwood.engine.daemon import Zygote
from boxwood.engine.dialling import Dialler
from boxwood.engine.hostbox import HostBox
from boxwood.engine.hostlayers import HostLayers
from boxwood.engine.network.desk import Visitor
from boxwood.engine.network.envoy import Envoy
from boxwood.engine.networkapi import Secrets
from boxwood.engine.policies import Policies
from boxwood.engine.proxy.questions import Question

log = logging.getLogger(__name__)


class HostNetworks(HostLayers):
    """The part of `HostEngine` that has to do with networks. `proxy_roots`: authorities of servers that its proxy
    believes beside the host's, in PEM."""

    def __init__(self, data: Path, zygote: Zygote, proxy_roots: str) -> None:
        super().__init__(data, zygote)
        self._account: Callable[[str, Usage], None] = lambda vm, usage: None
        self._router = Visitor(data, lambda vm, usage: self._account(vm, usage), self._on_router)
        self._dialler = Dialler(zygote.ask)
        self._envoy = Envoy(data, proxy_roots)

    @abstractmethod
    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that goes on whoever waits for it."""

    @property
    def sees_requests(self) -> bool:
        return True

    async def police(self, box: Box, policies: Policies, secrets: Secrets = dict) -> None:
        assert isinstance(box, HostBox)
        if policies.needs_proxy and box.address:
            await self._envoy.put(box.vm_id, _outbound(policies), secrets)
            if not (box.policies and box.policies.needs_proxy):
                box.gone.add_done_callback(lambda _: self._keep(self._unproxy(box)))
        before, box.policies = box.policies, policies
        had_none = box.policies_hold and before is not None and not before.outbound
        if not box.address:
            return
        if policies.outbound or not had_none:
            await self._put_in_force(box, policies)
        if not policies.needs_proxy:  # later than the router: what comes meanwhile goes by the rules before
            await self._envoy.drop(box.vm_id)

    async def _put_in_force(self, box: HostBox, policies: Policies) -> None:
        """EngineError: those before hold, and whoever asks for the same again is not told that it was done."""
        box.policies_hold = False
        await self._router.police(box.vm_id, box.address, _outbound(policies))
        box.policies_hold = box.policies is policies  # else others are on their way

    async def renew_secrets(self, concerned: Callable[[str], bool]) -> None:
        await self._envoy.repeat([vm for vm in self._envoy.vms if concerned(vm)])

    async def ask_gate(self, question: Question) -> str:
        if not self._router.there:  # there may be no box with a network: a gate needs one all the same
            said = await self._zygote.ask("network", {"wanted": True})
            if not said["active"]:
                raise EngineUnavailable(f"gates cannot be asked: {said['why']}")
        return await self._envoy.ask_gate(question)

    async def authority(self) -> str:
        """The certificate that boxes are to trust whose requests are seen, in PEM. OSError."""
        return await self._envoy.certificate()

    async def _unproxy(self, box: HostBox) -> None:
        """It has ended; the VM may have another one."""
        if not any(other.vm_id == box.vm_id for other in self._boxes.values() if other is not box):
            await self._envoy.drop(box.vm_id)

    def _on_router(self) -> None:
        """It may be another one, which knows nothing of policies."""
        told = [box for box in self._boxes.values() if box.policies is not None and box.address]
        if told:
            self._keep(self._police_again(told))

    async def _police_again(self, boxes: Sequence[HostBox]) -> None:
        for box in boxes:
            if box.policies is None or box.gone.done():
                continue
            try:
                await self._put_in_force(box, box.policies)
            except EngineError as error:
                log.warning("VM %s: its policy: %s", box.vm_id, error)

    async def dial(self, box: Box, port: int) -> socket.socket:
        assert isinstance(box, HostBox)
        return await self._dialler.dial(box.box_id, box.gone, port)

    async def usage(self, vm_id: str) -> Usage:
        if not self._router.there and not any(box.vm_id == vm_id and box.address for box in self._boxes.values()):
            return Usage()
        try:
            return await self._router.usage(vm_id)  # also of a box that has just ended, until its account is closed
        except EngineError:
            return Usage()  # there is no router, and so no wire

    def account(self, sink: Callable[[str, Usage], None]) -> None:
        self._account = sink


def _outbound(policies: Policies) -> dict[str, Any]:
    """What the router goes by."""
    return {rule.ident: rule.to_json() for rule in policies.outbound}
