"""What every actor shares: one bundle, built once by the node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.runtimes.routed import Runtimes
from agent.settings import NodeConfig
from agent.status import Event
from agent.store.sqlite import Store

if TYPE_CHECKING:
    from agent.engines.base import Engine
    from agent.supervision.actor import Actor
    from agent.supervision.devices import Devices
    from agent.supervision.ledger import Ledger
    from agent.supervision.ports import Ports
    from agent.supervision.preparation import Held, Preparation


@dataclass(slots=True)
class Services:
    """Effects, and the few questions that an actor asks about the others."""

    config: NodeConfig
    node_uid: str
    store: Store
    runtime: Runtimes
    preparation: Preparation
    ports: Ports
    devices: Devices
    ledger: Ledger
    instances: Path  # directory that holds one directory per instance
    engine: Callable[[str], Engine]
    changed: Callable[[str], None]  # this deployment's status is not what it was
    history: Callable[[tuple[Event, ...]], None]  # these events are durable now
    store_failed: Callable[[Exception], None]
    gone: Callable[[Actor], None]  # drop it: its deployment is deleted
    held: Callable[[str], Held]  # host memory, from the view of this deployment
    fail: Callable[[str], None]  # fail points
