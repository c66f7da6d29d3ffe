"""The daemon's own parts, in the tests' process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from agent.config import load_config
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.routed import Runtimes
from agent.store.sqlite import Store
from agent.supervision.node import Node
from tests.harness import Daemon


@pytest.fixture
async def inside(node: Daemon) -> AsyncIterator[Node]:
    """A node without its API and its periodic work. `Daemon.cleanup` ends what it starts."""
    loaded = load_config("user", config_file=node.config, overrides=[], environ=os.environ)
    store, stored = await asyncio.to_thread(Store.open, loaded.config.directories.state)
    uid, state = stored.node_uid, loaded.config.directories.state
    here = Node(loaded, uid, store, Runtimes(uid, ProcessRuntime(uid), state))
    devices = asyncio.create_task(here.device_registry.feed.run())
    await here.restore(stored)
    yield here
    await here.close()
    devices.cancel()
    await store.close()
