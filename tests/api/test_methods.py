from __future__ import annotations

from agent.api.methods import METHODS
from agent.api.servicers import Servicers
from agent.v1 import agent_pb2
from tests.api.fake_node import FakeNode


def _described(*, streaming: bool | None = None) -> set[str]:
    return {
        method.full_name
        for service in agent_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if streaming in (None, method.server_streaming)
    }


def test_every_method_of_every_service_is_in_the_table_and_nothing_else():
    assert set(METHODS) == _described()


def test_every_method_has_a_handler_of_its_kind():
    handlers = Servicers(FakeNode())
    assert set(handlers.unary) == _described(streaming=False)
    assert set(handlers.streams) == _described(streaming=True)


def test_no_method_streams_requests():
    """Only requests of one message are bounded by the size limit and the deadline."""
    services = agent_pb2.DESCRIPTOR.services_by_name.values()
    assert not [m.full_name for service in services for m in service.methods if m.client_streaming]
