"""The LiteLLM proxy with what a supervised gateway needs: back ends that change while it serves, and metrics.

Run by `agent.engines.litellm` with the Python that litellm is installed for; it imports nothing of the agent. On its
own (1.106.2) the proxy reads its configuration once: models that are added later need a database, or a restart of six
seconds without service. Without a database it answers a wrong key with 400 and a missing one with 500. Here the file is
read again when it changes, and the router gets the new list between two requests; keys are checked first, and requests
beyond the limit are refused at once instead of waiting in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: Seconds between two looks at the file.
LOOK = 0.5
#: Seconds that the agent gets to write the file of a new instance.
FIRST = 60.0
#: Seconds that requests get to finish at SIGTERM; the agent drains before that.
SHUTDOWN = 5

#: What answers beside the API of `/v1/`. The proxy's own administration changes what the agent decides.
HEALTH = frozenset({"/health/liveliness", "/health/readiness"})
#: Addresses where clients need no key, as those of engines.
LOOPBACK = frozenset({"127.0.0.1", "::1"})

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="litellm_server", allow_abbrev=False)
    flags.add_argument("--config", type=Path, required=True, help="LiteLLM's own configuration; read again on changes")
    flags.add_argument("--served-name", required=True)
    flags.add_argument("--host", required=True)
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--max-num-seqs", type=int, required=True, help="requests that are forwarded at once")
    return flags


class Gateway:
    """The proxy's application with a limit, metrics and a card of its own in front."""

    def __init__(self, ours: argparse.Namespace, proxy: Any) -> None:
        self._ours, self._proxy = ours, proxy
        self._seen = _state(ours.config)
        self._key = os.environ.get("LITELLM_MASTER_KEY", "").encode()
        self._running = self._requests = self._refused = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "lifespan" or path in HEALTH:
            await self._proxy.app(scope, receive, send)
        elif path == "/metrics":
            await _reply(send, 200, "text/plain; version=0.0.4", self._metrics())
        elif path == "/gateway":
            await _reply(send, 200, "application/json", json.dumps(self._card()))
        elif scope["type"] != "http" or not path.startswith("/v1/"):
            await _reply(send, 404, "application/json", json.dumps({"error": {"message": "no such path"}}))
        elif not self._may(dict(scope["headers"])):
            await _reply(send, 401, "application/json", json.dumps({"error": {"message": "no valid API key"}}))
        elif scope["method"] != "POST":
            await self._proxy.app(scope, receive, send)
        elif self._running >= self._ours.max_num_seqs:
            self._refused += 1
            problem = {"message": f"{self._running} requests are in flight, which is the limit", "type": "overloaded"}
            await _reply(send, 429, "application/json", json.dumps({"error": problem}))
        else:
            await self._forwarded(scope, receive, send)

    def _may(self, headers: dict[bytes, bytes]) -> bool:
        """Whether the request has the key, if there is one."""
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ") or headers.get(b"x-api-key", b"")
        return not self._key or hmac.compare_digest(given, self._key)

    async def _forwarded(self, scope: Message, receive: Receive, send: Send) -> None:
        self._running += 1
        self._requests += 1
        try:
            await self._proxy.app(scope, receive, send)
        finally:
            self._running -= 1

    def _metrics(self) -> str:
        """Prometheus' text format."""
        values = (
            ("running", "gauge", self._running),
            ("requests_total", "counter", self._requests),
            ("refused_total", "counter", self._refused),
            ("back_ends", "gauge", self._back_ends()),
        )
        return "".join(f"# TYPE litellm_{name} {kind}\nlitellm_{name} {value}\n" for name, kind, value in values)

    def _card(self) -> dict[str, object]:
        return {
            "id": self._ours.served_name, "max_num_seqs": self._ours.max_num_seqs, "back_ends": self._back_ends(),
        }  # fmt: skip

    def _back_ends(self) -> int:
        router = self._proxy.llm_router
        return len({each["litellm_params"]["api_base"] for each in router.model_list}) if router is not None else 0

    async def follow(self) -> None:
        """Take over what the file says, whenever it changes. One that cannot be read changes nothing."""
        while True:
            await asyncio.sleep(LOOK)
            state = _state(self._ours.config)
            if state is not None and state != self._seen:
                self._seen = state
                try:
                    self._take(json.loads(self._ours.config.read_text(encoding="utf-8")))
                except Exception:  # noqa: BLE001 - whatever it is: the routes that are there go on
                    traceback.print_exc()

    def _take(self, config: dict[str, Any]) -> None:
        models, router = config["model_list"], self._proxy.llm_router
        router.update_settings(fallbacks=config["router_settings"]["fallbacks"])
        router.set_model_list(models)
        self._proxy.llm_model_list = models
        sys.stderr.write(f"gateway: {self._back_ends()} back ends\n")


async def _reply(send: Send, status: int, kind: str, body: str) -> None:
    headers = [(b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


async def serve(ours: argparse.Namespace, gateway: Gateway, uvicorn: Any) -> None:
    config = uvicorn.Config(
        gateway, host=ours.host, port=ours.port, log_level="warning", timeout_graceful_shutdown=SHUTDOWN
    )
    following = asyncio.create_task(gateway.follow())
    try:
        await uvicorn.Server(config).serve()
    finally:
        following.cancel()


def main(arguments: Sequence[str]) -> None:
    if "--version" in arguments:
        sys.stdout.write(f"version: litellm {version('litellm')}\n")
        return
    ours = parser().parse_args(arguments)
    end = time.monotonic() + FIRST
    while _state(ours.config) is None:
        if time.monotonic() > end:
            sys.exit(f"gateway: nobody wrote {ours.config} within {FIRST:g} s")
        time.sleep(0.05)
    os.environ["CONFIG_FILE_PATH"] = str(ours.config)
    if ours.host in LOOPBACK and "LITELLM_MASTER_KEY" not in os.environ:
        os.environ["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
    uvicorn, proxy = import_module("uvicorn"), import_module("litellm.proxy.proxy_server")
    asyncio.run(serve(ours, Gateway(ours, proxy), uvicorn))


if __name__ == "__main__":
    main(sys.argv[1:])
