"""The composition root: wires everything, runs until told to stop. Nothing imports this module.

Order at start (reliability rules): lock and open the state, find what runs, match, reserve, probe with the last
verdicts held, open the API, say READY=1. At the end the API goes first, and no engine is touched: stopping the
agent ends the agent.
"""

from __future__ import annotations

import gc
import sys

# What the start makes is kept: to look for garbage in it, over and over, would cost a twelfth of the start.
gc.disable()
# structlog imports rich wherever it is installed, for tracebacks in colour that a daemon never prints: 75 ms and 5 MiB
# of every start.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # the documented way to make an import fail
from agent.lazy import defer

# Protobuf imports its messages in Python beside those in C, which are used: 1 MiB, and a twelfth of the start.
defer("google.protobuf.internal.python_message")

import argparse
import asyncio
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import structlog

from agent import __version__, systemd
from agent.api.server import ApiServer
from agent.config import LoadedConfig, load_config
from agent.errors import AgentError
from agent.runtimes.cgroups import Cgroups
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.routed import Runtimes
from agent.settings import NodeConfig
from agent.status import Phase
from agent.store.sqlite import Store
from agent.supervision import clock
from agent.supervision.node import Node
from agent.supervision.sweep import Sweep
from agent.supervision.upkeep import Upkeep
from agent.telemetry import logging

log = structlog.get_logger("agentd")

#: Calls in flight get this long (seconds) at a stop; streams are ended at once.
API_GRACE = 2.0
#: For what may block, made as they are needed: those that hang must leave enough for all others.
THREADS = 64
#: The status line that systemd shows is this old at most (seconds).
STATUS_PERIOD = 5.0
#: The watchdog is fed only while the work loop came around within this many of its periods.
WATCHDOG_PERIODS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon. Returns the exit status: 0 after a stop, 1 when it could not start, 2 for bad usage or config."""
    arguments = _parser().parse_args(argv)
    try:
        loaded = load_config(arguments.scope, config_file=arguments.config, overrides=arguments.set, environ=os.environ)
    except AgentError as error:
        _complain(error)
        return 2
    logging.configure(loaded.config.daemon.log_level, loaded.config.daemon.log_format)
    return asyncio.run(_run_and_leave(loaded))


async def _run_and_leave(loaded: LoadedConfig) -> NoReturn:
    """A thread that hangs in dead storage or a sick driver would hold up the interpreter's own end for ever: leave
    without it, however it ends."""
    status = 1
    try:
        await run(loaded)
        status = 0
    except AgentError as error:
        _complain(error)
    except Exception:
        log.exception("agentd failed")
    finally:
        sys.stderr.flush()
        os._exit(status)


async def run(loaded: LoadedConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises `AgentError` when it cannot start."""
    config, stop = loaded.config, asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, "blocking"))
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _explain_reload)
    _make_directories(config)
    store, stored = await asyncio.to_thread(
        Store.open, config.directories.state, deadline=config.daemon.store_deadline_seconds
    )
    try:
        # One name a node: two agents of one host must not sweep each other's groups.
        cgroups = Cgroups.detect(config.daemon.cgroups, f"llm-node-agent-{stored.node_uid[:8]}")
        runtimes = Runtimes(stored.node_uid, ProcessRuntime(stored.node_uid, cgroups), config.directories.state)
        node = Node(loaded, stored.node_uid, store, runtimes)
        _tell_enforcement(node, cgroups)
        await node.restore(stored)
        cgroups.sweep_empty(set(node.recorded_instances()))
        api = await ApiServer.serve(config.api.control, config.api.readonly, node)
        try:
            await _serve(node, stop)
        finally:
            systemd.notify("STOPPING=1", "STATUS=stopping; engines keep serving")
            await api.stop(API_GRACE)
            await node.close()
    finally:
        await store.close()
    engines = sum(actor.instance is not None and actor.instance.ended_at is None for actor in node.registry)
    log.info("stopped; engines serve on until an agent ends them" if engines else "stopped", engines=engines)


async def _serve(node: Node, stop: asyncio.Event) -> None:
    settings = node.settings
    sweep = Sweep(node.services, node.conditions, report_only=node.damaged)
    upkeep = Upkeep(node, sweep)
    log.info("ready", version=__version__, socket=str(settings.api.control.path), deployments=len(node.registry))
    systemd.notify("READY=1", f"STATUS={_status_line(node)}")
    # What was imported and restored lives as long as the daemon: the collector need not walk it again and again.
    gc.collect()
    gc.freeze()
    gc.enable()
    node.rehearse()
    tasks = [asyncio.create_task(upkeep.run()), asyncio.create_task(_feed_watchdog(node, upkeep))]
    stopping = asyncio.create_task(stop.wait())
    try:
        # A dead upkeep loop means a daemon that only looks alive: better to end, and be restarted and adopt.
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (stopping, *tasks):
            task.cancel()
        await asyncio.gather(stopping, *tasks, return_exceptions=True)


async def _feed_watchdog(node: Node, upkeep: Upkeep) -> None:
    """Ping systemd from the evidence of work done, never from a bare timer."""
    limit = systemd.watchdog_seconds()
    # Three times within the limit, and often enough for a status that is worth reading.
    period = min(limit / 3 if limit else STATUS_PERIOD, STATUS_PERIOD)
    allowed = max(WATCHDOG_PERIODS * node.settings.daemon.sample_seconds, period)
    while True:
        late = clock.now() - upkeep.turned_at
        if late <= allowed:
            systemd.notify("WATCHDOG=1", f"STATUS={_status_line(node)}")
        else:
            log.error("work loop is late; the watchdog is not fed", seconds=round(late, 1))
        await clock.beat(period, clock.now())


def _tell_enforcement(node: Node, cgroups: Cgroups) -> None:
    if cgroups.problems:
        # Neither good nor bad by itself: only a spec with kernel limits misses them, and its instance says so.
        problems = "; ".join(f"{controller}: {problem}" for controller, problem in cgroups.problems.items())
        node.conditions.set("LimitsEnforced", None, "CgroupsNotWritable", problems)
    else:
        node.conditions.set("LimitsEnforced", True, "CgroupsWritable", "limits of a spec are enforced by the kernel")


def _status_line(node: Node) -> str:
    statuses = node.registry.statuses().values()
    bad = [condition.type for condition in node.conditions.all() if condition.status is False]
    line = f"{sum(status.phase is Phase.READY for status in statuses)} of {len(statuses)} deployments ready"
    return f"{line}; not good: {', '.join(bad)}" if bad else line


def _make_directories(config: NodeConfig) -> None:
    folders = config.directories
    # Who may use a socket is the socket's own mode; others must at least reach it.
    runtime_mode = 0o755 if config.scope == "system" else 0o700
    private = [(path, 0o700) for path in (folders.state, folders.cache, folders.logs)]
    for path, mode in [*private, (folders.runtime, runtime_mode)]:
        try:
            path.mkdir(parents=True, exist_ok=True, mode=mode)
        except OSError as error:
            # A read-only state directory can still be read; the store decides whether that is enough.
            log.warning("directory not made", path=str(path), error=error.strerror)


def _explain_reload() -> None:
    log.warning("SIGHUP: configuration is read at start; restart agentd to apply it (engines keep serving)")


def _complain(error: AgentError) -> None:
    lines = [f"agentd: error: {error.message}"]
    lines += [f"  {violation.field}: {violation.rule}" for violation in error.violations]
    lines += [f"hint: {error.hint}"] if error.hint else []
    sys.stderr.write("\n".join(lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agentd", description="The node agent: runs and supervises LLM inference engines on this host."
    )
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--system", dest="scope", action="store_const", const="system",
                       help="serve the host: /etc, /var/lib, /run (default for root)")  # fmt: skip
    scope.add_argument("--user", dest="scope", action="store_const", const="user",
                       help="serve this user: XDG directories (default for others)")  # fmt: skip
    parser.set_defaults(scope="system" if os.geteuid() == 0 else "user")
    parser.add_argument("--config", type=Path, metavar="FILE", help="read FILE instead of the scope's agentd.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override one value, e.g. --set policy.ports.last=8299; may be repeated")  # fmt: skip
    parser.add_argument("--version", action="version", version=f"agentd {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
