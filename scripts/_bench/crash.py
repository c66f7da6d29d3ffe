"""A healthy engine is killed, or hangs: how long until its replacement is executed, and until that answers.

All supervisors run at the same time, each over the same child: the very command that the agent made, behind the
wrapper that tells its pid as its first act. They take turns, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from agent.v1 import agent_pb2 as pb
from scripts._bench import peers
from scripts._bench.figures import Figure, Sample, Target
from scripts._bench.place import LAUNCHER, SMALL, Place, milliseconds_since, spec
from tests.harness import PHASE, Daemon, free_port, wait_true

PART = "crash"
RUNS, QUICK_RUNS = 15, 3
SLOW_RUNS = 5  # of supervisord, which looks at its children once a second
#: runit and supervisord take a child that ends within its first second for one that never started.
HEALTHY_SECONDS = 1.2
WAIT_SECONDS = 30.0

#: Short probes for the hang: what is measured is the distance to period x threshold, not its length.
PROBE_PERIOD, PROBE_FAILURES = 1.0, 3
PROBES = {
    "readiness": {"period_seconds": PROBE_PERIOD, "timeout_seconds": PROBE_PERIOD},
    "liveness": {
        "period_seconds": PROBE_PERIOD,
        "timeout_seconds": PROBE_PERIOD,
        "failure_threshold": PROBE_FAILURES,
    },
}
HANG_RUNS, QUICK_HANG_RUNS = 5, 1
HANG_LIMIT = PROBE_PERIOD * PROBE_FAILURES + 1.0


@dataclass(slots=True)
class Contender:
    """One supervisor over one child. `stamp` is our end of the FIFO into which each new child writes its pid."""

    name: str
    stamp: int
    port: int = 0
    pid: int = 0
    to_death: list[float] = field(default_factory=list)
    to_exec: list[float] = field(default_factory=list)
    to_answer: list[float] = field(default_factory=list)

    def next_pid(self, seconds: float = WAIT_SECONDS) -> int | None:
        """Wait for a child to be executed; None if there is none within `seconds`."""
        if not select.select([self.stamp], [], [], seconds)[0]:
            return None
        self.pid = int(os.read(self.stamp, 64))
        return self.pid

    def crash(self) -> None:
        child = os.pidfd_open(self.pid)
        began = time.monotonic_ns()
        signal.pidfd_send_signal(child, signal.SIGKILL)
        select.select([child], [], [], WAIT_SECONDS)
        self.to_death.append(milliseconds_since(began))
        os.close(child)
        if self.next_pid() is None:
            raise TimeoutError(f"{self.name} did not replace its child within {WAIT_SECONDS:g} s")
        self.to_exec.append(milliseconds_since(began))
        wait_true(lambda: answers(self.port), WAIT_SECONDS, f"{self.name}'s child answers")
        self.to_answer.append(milliseconds_since(began))


def answers(port: int) -> bool:
    """Whether the engine's health is HTTP 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def measure(place: Place, *, quick: bool) -> list[Figure]:
    runs = QUICK_RUNS if quick else RUNS
    with ExitStack() as stack:
        node = place.node("crash-small", engines={"llama.cpp": {"binary": [str(place.small)]}})
        agent, others = _contenders(place, node, stack)
        steps = _crash_in_turns(node, agent, others, runs)
        small = _exec_figure(agent, others, "a small child", Target("at most 10 ms", 10))
    place.end()
    with ExitStack() as stack:
        node = place.node("crash")
        agent, others = _contenders(place, node, stack)
        _crash_in_turns(node, agent, others, runs)
        hang = _hang_figure(node, agent, others, QUICK_HANG_RUNS if quick else HANG_RUNS)
    return [small, *steps, _exec_figure(agent, others, "llama.cpp"), _answer_figure(agent, others), hang]


def _contenders(place: Place, node: Daemon, stack: ExitStack) -> tuple[Contender, list[Contender]]:
    agent, child = _agent(place, node, stack)
    others = [_peer(place, name, child, stack) for name in peers.present()]
    time.sleep(HEALTHY_SECONDS)
    return agent, others


@contextmanager
def _stamp(place: Place, name: str) -> Iterator[tuple[Path, int]]:
    path = place.root / f"stamp-{name.replace(' ', '-')}"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)  # also as a writer: so children never wait, and we never read the end
    try:
        yield path, end
    finally:
        os.close(end)
        path.unlink()


def _agent(place: Place, node: Daemon, stack: ExitStack) -> tuple[Contender, list[str]]:
    """The agent as a contender, and the command of its child with its port, for the others."""
    path, end = stack.enter_context(_stamp(place, "agent"))
    node.start()
    fields = {"environment": {"STAMP": str(path)}, "probes": PROBES, "restart": {"reset_after_seconds": 0.5}}
    with node.client() as client:
        client.apply_deployment(spec(place, "m", **fields))
    contender = Contender("agent", end)
    contender.next_pid()
    contender.port = node.wait("m").instance.port
    argv = Path(f"/proc/{contender.pid}/cmdline").read_text().split("\0")[:-1]
    program, engine = (SMALL, place.small) if str(SMALL) in argv else (LAUNCHER, place.engine)
    return contender, [str(engine), *argv[argv.index(str(program)) + 1 :]]


def _peer(place: Place, name: str, child: Sequence[str], stack: ExitStack) -> Contender:
    path, end = stack.enter_context(_stamp(place, name))
    contender = Contender(name, end, free_port())
    argv = list(child)
    argv[argv.index("--port") + 1] = str(contender.port)
    peers.present()[name](place, Path(mkdtemp(dir=place.root)), argv, {"STAMP": str(path)})
    contender.next_pid()
    wait_true(lambda: answers(contender.port), WAIT_SECONDS, f"{name}'s child answers")
    return contender


def _crash_in_turns(node: Daemon, agent: Contender, others: Sequence[Contender], runs: int) -> list[Figure]:
    """Fills the contenders; returns where the agent's time goes, out of its own records."""
    intent, handle = [], []
    for run in range(runs):
        for contender in others:
            if contender.name != "supervisord" or run < SLOW_RUNS:
                contender.crash()
        began = time.time()
        agent.crash()
        instance = _healthy(node, agent).instance
        intent.append((instance.create_time.ToNanoseconds() / 1e9 - began) * 1e3)
        handle.append((instance.start_time.ToNanoseconds() / 1e9 - began) * 1e3)
        time.sleep(HEALTHY_SECONDS)
    return [
        Figure(PART, "of which until the engine is dead", "ms", Sample.of(agent.to_death)),
        Figure(PART, "of which until the new instance is made", "ms", Sample.of(intent)),
        Figure(PART, "of which until its process is spawned", "ms", Sample.of(handle)),
    ]


def _healthy(node: Daemon, agent: Contender) -> pb.Deployment:
    def served_by_it(deployment: pb.Deployment) -> bool:
        return PHASE[deployment.phase] == "ready" and deployment.instance.pid == agent.pid

    return node.wait_until(served_by_it, "m", WAIT_SECONDS, "ready again")


def _exec_figure(agent: Contender, others: Sequence[Contender], child: str, target: Target | None = None) -> Figure:
    took = {contender.name: Sample.of(contender.to_exec) for contender in others}
    return Figure(PART, f"SIGKILL to exec of the replacement, {child}", "ms", Sample.of(agent.to_exec), took, target)


def _answer_figure(agent: Contender, others: Sequence[Contender]) -> Figure:
    answer = {contender.name: Sample.of(contender.to_answer) for contender in others}
    target = Target("at most 1.1 x runit", 1.1 * answer["runit"].median) if "runit" in answer else None
    return Figure(PART, "SIGKILL to HTTP 200", "ms", Sample.of(agent.to_answer), answer, target)


def _hang_figure(node: Daemon, agent: Contender, others: Sequence[Contender], runs: int) -> Figure:
    """SIGSTOP. The peers' children are stopped during the first run, and looked at after the last."""
    for contender in others:
        os.kill(contender.pid, signal.SIGSTOP)
    began, took = time.monotonic(), []
    for _ in range(runs):
        stopped = time.monotonic_ns()
        os.kill(agent.pid, signal.SIGSTOP)
        if agent.next_pid() is None:
            raise TimeoutError(f"the agent did not replace a hung engine within {WAIT_SECONDS:g} s")
        took.append(milliseconds_since(stopped) / 1e3)
        _healthy(node, agent)
        time.sleep(HEALTHY_SECONDS)
    watched = f"not within {time.monotonic() - began:.0f} s"
    never = {contender.name: watched for contender in others if contender.next_pid(0) is None}
    what = f"SIGSTOP to exec of the replacement, probes {PROBE_PERIOD:g} s x {PROBE_FAILURES}"
    target = Target(f"at most period x threshold + 1 s = {HANG_LIMIT:g} s", HANG_LIMIT)
    return Figure(PART, what, "s", Sample.of(took), target=target, never=never)
