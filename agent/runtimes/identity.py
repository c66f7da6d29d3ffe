"""The identity of an instance as it travels in the environment of every process of it.

Environments are inherited, so that whatever an engine starts is found too, and stay what they were at exec.
"""

from __future__ import annotations

from agent.runtimes.base import Identity

PREFIX = "LLM_NODE_AGENT_"


def variables(identity: Identity) -> dict[str, str]:
    return {
        f"{PREFIX}NODE": identity.node,
        f"{PREFIX}DEPLOYMENT": identity.deployment,
        f"{PREFIX}GENERATION": str(identity.generation),
        f"{PREFIX}ATTEMPT": str(identity.attempt),
        f"{PREFIX}INSTANCE": identity.instance,
    }


def parse(environment: bytes) -> Identity | None:
    """Who a process says it is, from its NUL-separated environment; None when it says nothing, or not all of it."""
    found = {}
    for entry in environment.split(b"\0"):
        if entry.startswith(PREFIX.encode()):
            name, _, value = entry.decode(errors="replace").partition("=")
            found[name.removeprefix(PREFIX)] = value
    try:
        generation, attempt = int(found["GENERATION"]), int(found["ATTEMPT"])
        return Identity(found["NODE"], found["DEPLOYMENT"], generation, attempt, found["INSTANCE"])
    except (KeyError, ValueError):
        return None


def carries(environment: bytes, instance: str) -> bool:
    """Whether a process belongs to an instance. Cheaper than `parse`, for looking through all of /proc."""
    return f"\0{PREFIX}INSTANCE={instance}\0".encode() in b"\0" + environment
