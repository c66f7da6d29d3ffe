"""Watch streams: level-triggered, so that a slow client misses nothing and costs no memory.

A watcher is woken, looks at the present statuses and at the events after the last one it sent, and sends the
difference. Events come from the store, statuses from the node's snapshot; nothing is queued for anybody.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

from agent.errors import FieldViolation, InvalidArgument
from agent.frozen import frozen
from agent.status import DeploymentStatus, NodeStatus, Phase
from agent.store.sqlite import Store
from agent.supervision.service import Change
from agent.supervision.watchers import Watchers

#: Events read from the store at once.
PAGE = 500


def material(status: DeploymentStatus) -> tuple[object, ...]:
    """What a watcher is told of: everything but the times and samples that change with each probe."""
    instance = status.instance
    return (
        status.etag, status.phase, status.reason, status.message, status.progress, status.restarts,
        status.diagnosis, status.granted, status.endpoint, status.observed_generation,
        tuple((condition.type, condition.status, condition.reason) for condition in status.conditions),
        instance and (instance.id, instance.live, instance.pid, tuple((p.kind, p.verdict) for p in instance.probes)),
    )  # fmt: skip


def material_node(node: NodeStatus) -> tuple[object, ...]:
    """The same of the node: conditions, and how the devices are and who has them."""
    return (
        tuple((condition.type, condition.status, condition.reason) for condition in node.conditions),
        tuple(
            (
                device.id,
                device.condition,
                device.reason,
                device.detail_json,
                *((h.instance, h.ended) for h in device.holds),
            )
            for device in node.devices
        ),
    )


def encode_token(node_uid: str, seq: int) -> str:
    return base64.urlsafe_b64encode(f"{node_uid}:{seq}".encode()).decode()


def decode_token(node_uid: str, token: str) -> int:
    """The event number in `token`. Raises `InvalidArgument` for garbage and for another node's token."""
    try:
        owner, _, seq = base64.urlsafe_b64decode(token.encode()).decode().rpartition(":")
        number = int(seq)
    except (binascii.Error, ValueError) as error:
        raise _bad_token("is not one that this API gave out") from error
    if owner != node_uid or number < 0:
        raise _bad_token("belongs to another node")
    return number


def _bad_token(problem: str) -> InvalidArgument:
    violation = FieldViolation("resume_token", f"{problem}; leave it empty to start from now")
    return InvalidArgument("invalid resume token", violations=(violation,))


@frozen
class Feed:
    """Where changes come from."""

    statuses: Callable[[], dict[str, DeploymentStatus]]
    node: Callable[[], NodeStatus]
    store: Store
    watchers: Watchers
    node_uid: str


async def stream(feed: Feed, deployment: str, resume_token: str, *, events_only: bool) -> AsyncIterator[Change]:
    """Present statuses, replayed events, `synced`, then changes, until the client goes or the deployment that was
    asked for is deleted. Raises `InvalidArgument` for a bad token."""
    node_uid, store, watchers = feed.node_uid, feed.store, feed.watchers
    after = decode_token(node_uid, resume_token) if resume_token else store.last_seq
    lost = after < store.oldest_seq - 1
    sent: dict[str, DeploymentStatus] = {}
    sent_node: tuple[object, ...] | None = None
    wake, synced = watchers.join(), False
    try:
        while True:
            wake.clear()
            changes = [] if events_only else list(_changed(feed.statuses(), sent, deployment))
            if not (events_only or deployment) and material_node(node := feed.node()) != sent_node:
                sent_node = material_node(node)
                changes.insert(0, Change(node=node))
            for change in changes:
                yield replace(change, resume_token=encode_token(node_uid, after))
            while events := await store.events_after(after, deployment, PAGE):
                for event in events:
                    after = event.seq
                    yield Change(event=event, resume_token=encode_token(node_uid, after))
            if not synced:
                synced = True
                yield Change(synced=True, events_lost=lost, resume_token=encode_token(node_uid, after))
            if deployment and any(c.deployment and c.deployment.phase is Phase.DELETED for c in changes):
                return
            await wake.wait()
    finally:
        watchers.leave(wake)


def _changed(present: dict[str, DeploymentStatus], sent: dict[str, DeploymentStatus], only: str) -> Iterator[Change]:
    """What differs from what was sent; `sent` is brought up to date."""
    for name, old in list(sent.items()):
        new = present.get(name)
        if new is None or new.uid != old.uid:
            del sent[name]
            yield Change(deployment=replace(old, phase=Phase.DELETED, reason="Deleted", message="deleted"))
    for name, new in present.items():
        if only and name != only:
            continue
        last = sent.get(name)
        if last is None or material(last) != material(new):
            sent[name] = new
            yield Change(deployment=new)
