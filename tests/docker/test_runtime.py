"""The `docker` runtime keeps the contract of runtimes, with a real dockerd and with a real podman."""

from __future__ import annotations

import pytest

from tests.docker.runtime_bench import ContainerBench
from tests.runtimes.contract import RuntimeContract

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(120)]


class TestInContainers(RuntimeContract):
    async def test_a_descendant_in_a_session_of_its_own_survives_the_engine_and_is_found_and_killed(
        self, bench: ContainerBench
    ) -> None:
        """In a container it does not survive: with the init, the kernel ends all."""
        running = await bench.sh("setsid sleep 1000 & echo ready; exit 4")
        assert (await bench.exit(running)).code == 4
        await bench.gone(running)
