"""Which port an engine gets, with real listeners on it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from agent.settings import PortRange
from agent.status import DiagnosisCode
from agent.supervision.ports import Ports
from agent.supervision.preparation import PreparationError

HOST = "127.0.0.1"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on, with free ones beside it."""
    with socket.create_server((HOST, 0)) as server:
        yield server.getsockname()[1]


def ports(about: int, held: dict[int, str] | None = None, host: str = HOST) -> Ports:
    return Ports(host, PortRange(first=about - 9, last=min(about + 9, 65535)), lambda: held or {})


def test_a_port_that_somebody_listens_on_is_left_and_a_fixed_one_refused(taken: int) -> None:
    assert ports(taken).take("d", "auto", taken) != taken
    with pytest.raises(PreparationError) as caught:
        ports(taken).take("d", taken, taken)
    assert caught.value.diagnosis.code == DiagnosisCode.PORT_TAKEN


@pytest.mark.parametrize("fixed", [True, False])
def test_an_address_that_is_not_of_this_host_is_not_taken_for_a_port_in_use(taken: int, fixed: bool) -> None:
    host = "192.0.2.7"  # of documentation: nobody's
    with pytest.raises(PreparationError) as caught:
        ports(taken, host=host).take("d", taken if fixed else "auto", 0)
    diagnosis = caught.value.diagnosis
    assert diagnosis.message == f"policy.bind is {host}, and that is no address of this host"
    assert "policy.bind" in diagnosis.hint
    assert not diagnosis.fatal


@pytest.mark.parametrize("fixed", [True, False])
def test_a_port_that_a_container_engine_still_lets_go_of_is_kept(taken: int, fixed: bool) -> None:
    assert ports(taken).take("d", taken if fixed else "auto", taken, releasing=True) == taken


def test_a_port_of_another_deployment_or_before_a_new_wish_is_not_kept(taken: int) -> None:
    assert ports(taken, {taken: "other"}).take("d", "auto", taken, releasing=True) != taken
    with socket.create_server((HOST, 0)) as free:
        wanted = free.getsockname()[1]
    assert ports(taken).take("d", wanted, taken, releasing=True) == wanted
