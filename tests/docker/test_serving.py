"""From a spec to a served model in a container: real daemon, container engine, registry and engine."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.api.structs import struct_to_dict
from agent.errors import AgentError
from agent.references import ImageReference
from agent.v1 import agent_pb2 as pb
from tests.docker.parts import MIB, Docker, Engine, Line, Podman, Registry
from tests.harness import PHASE, Daemon, Traffic, complete, wait_true
from tests.hub.server import Hub

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(180)]

KILLS = int(os.environ.get("CHAOS_KILLS", "5"))
#: The image of the tests has no /app/llama-server, as an operator's own may not have: the catalog says what starts it.
COMMAND = [str(Path(sys.executable).resolve()), "/engine/llama_server.py"]


class Node(Daemon):
    """A node whose llama.cpp is the test's image, run by the test's container engine."""

    def __init__(self, root: Path, model: Path, engine: Engine, image: ImageReference, **settings: Any) -> None:
        catalog = root / "engines.yaml"
        listed = {
            "repository": image.repository, "tag": image.tag, "accelerators": ["cpu"],
            "architectures": ["amd64", "arm64"], "command": COMMAND,
        }  # fmt: skip
        catalog.write_text(yaml.safe_dump({"engines": {"llama.cpp": [listed]}}))
        own = {
            "containers": {"socket": str(engine.socket)},
            "catalog": {"engines": str(catalog)},
            "images": {"disk_reserve_bytes": 0},
        }
        super().__init__(root, model, **own, **settings)
        self.engine = engine

    def serve(self, name: str = "m", **fields: Any) -> pb.Deployment:
        self.apply(name, runtime="docker", **fields)
        return self.wait(name, timeout=60)

    @property
    def _labels(self) -> list[str]:
        return [f"llm-node-agent.node={(self.root / 'state' / 'node.uid').read_text().strip()}"]

    def containers(self, name: str = "") -> list[str]:
        """Ids of this node's containers, the ended ones too."""
        labels = self._labels + ([f"llm-node-agent.deployment={name}"] if name else [])
        with self.engine.client() as api:
            return [each["Id"] for each in api.containers(all=True, filters={"label": labels})]

    def remove_containers(self) -> None:
        if (self.root / "state" / "node.uid").exists():
            for id in self.containers():
                self.behind_its_back("remove_container", id, force=True)

    def behind_its_back(self, what: str, container: str, *arguments: Any, **options: Any) -> Any:
        """What somebody else does to a container: a call of the engine's API."""
        with self.engine.client() as api:
            return getattr(api, what)(container, *arguments, **options)


@pytest.fixture
def make_node(
    tmp_path: Path, tiny_model: Path, engine: Docker, served: ImageReference
) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(**settings: Any) -> Node:
        made.append(Node(tmp_path, tiny_model, engine, served, **settings))
        return made[-1]

    yield make
    for node in made:
        node.cleanup()
        node.remove_containers()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    made = make_node()
    made.start()
    return made


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[Hub]:
    with Hub() as running:
        running.repo("org/tiny", {"tiny.gguf": tiny_model, "config.json": b"{}"})
        yield running


def plan_of(deployment: pb.Deployment) -> dict[str, Any]:
    return struct_to_dict(deployment.plan)


def agentctl(node: Node, *arguments: str) -> str:
    command = [sys.executable, "-m", "agent.ctl", "--socket", str(node.control), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_spec_becomes_a_served_model_with_image_and_weights_brought_side_by_side(
    make_node: Callable[..., Node], hub: Hub, line: Line, registry: Registry
) -> None:
    node = make_node(fetch={"endpoint": hub.endpoint})
    node.start()
    line.stalled, line.rate = True, 20.0 * MIB
    node.apply(runtime="docker", model="hf:org/tiny")
    node.wait(phase="fetching", timeout=30)
    weights = node.root / "cache"
    wait_true(lambda: [*weights.rglob("snapshots/*/*.gguf")], what="weights, while the registry is silent", timeout=30)
    assert line.accepted  # the image does not wait for them either
    assert PHASE[node.get().phase] == "fetching"
    line.stalled = False
    node.wait_until(lambda d: "image: fetching" in d.progress.step and d.progress.done_bytes > MIB, timeout=30)
    ready = node.wait(timeout=60)

    assert complete(ready.endpoint)["content"]
    digest = registry.manifest("org/llama-server", "v1")["digest"]
    image, instance = plan_of(ready)["image"], ready.instance
    assert (image["digest"], instance.image_digest, instance.runtime) == (digest, digest, "docker")
    (container,) = node.containers()
    assert instance.container == container
    assert plan_of(ready)["runtime"] == "docker"
    assert any("models--org--tiny" in path for path in image["paths"])


def test_what_a_container_gets_is_what_it_needs_and_no_more(node: Node) -> None:
    ready = node.serve(secrets={"HELPER": {"env": "PATH"}}, environment={"GREETING": "hello"})
    (container,) = node.containers()
    found = node.behind_its_back("inspect_container", container)
    host, variables = found["HostConfig"], dict(each.split("=", 1) for each in found["Config"]["Env"])

    assert (host["Privileged"], host["CapDrop"], host["ReadonlyRootfs"]) == (False, ["ALL"], True)
    assert host["RestartPolicy"]["Name"] in {"", "no"}
    assert list(host["PortBindings"].values()) == [[{"HostIp": "127.0.0.1", "HostPort": str(ready.instance.port)}]]
    assert [(mount["Source"], mount["RW"]) for mount in found["Mounts"] if mount["Type"] == "bind"] == [
        (str(node.model), False),
        (str(node.root / "cache/compiled/m"), True),
    ]
    assert (variables["GREETING"], variables["HELPER"]) == ("hello", os.environ["PATH"])
    assert not {"HOME", "VIRTUAL_ENV", "LLM_NODE_AGENT_NODE"} & {*variables} - {*_image_variables(node, found["Image"])}


def _image_variables(node: Node, image: str) -> list[str]:
    config = node.behind_its_back("inspect_image", image)["Config"]
    return [each.split("=", 1)[0] for each in config["Env"] or ()]


def test_an_agent_that_is_killed_finds_its_container_and_restarts_nothing(node: Node) -> None:
    before = node.serve()
    with Traffic(before.endpoint, pause=0.05) as traffic:
        node.kill()
        node.start()
        wait_true(lambda: "Adopted" in node.reasons(), what="adopted")
        asked = traffic.answers
        wait_true(lambda: traffic.answers > asked + 3)

    assert traffic.failures == []
    after = node.get()
    assert (after.instance.container, after.restarts) == (before.instance.container, 0)
    assert PHASE[after.phase] == "ready"
    assert node.containers() == [before.instance.container]


def test_a_container_that_dies_is_started_again_at_once_and_the_reason_is_told(node: Node) -> None:
    before = node.serve()
    node.behind_its_back("kill", before.instance.container)
    after = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.name != before.instance.name, timeout=30)

    assert after.restarts == 1
    assert (after.previous.diagnosis.code, after.previous.exit.signal) == ("killed", signal.SIGKILL)
    assert after.endpoint == before.endpoint
    assert complete(after.endpoint)
    assert node.containers() == [after.instance.container] == [before.instance.container]
    wait_true(lambda: said_loaded(after.instance) == 1, timeout=30, what="its output gathered")
    assert said_loaded(after.previous) == 1


def said_loaded(instance: pb.Instance) -> int:
    log = Path(instance.log_path)
    return log.read_text().count("model loaded") if log.exists() else 0


def test_a_container_that_died_twice_without_a_long_healthy_run_is_replaced_by_a_new_one(node: Node) -> None:
    before = node.serve()
    node.behind_its_back("kill", before.instance.container)
    node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.restarts == 1, timeout=30)
    node.behind_its_back("kill", before.instance.container)
    after = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.restarts == 2, timeout=30)

    assert after.instance.container != before.instance.container
    wait_true(lambda: node.containers() == [after.instance.container], what="the dead one removed")


@pytest.mark.parametrize("point", ["before-intent", "after-intent", "after-spawn", "after-handle"])
def test_an_agent_that_dies_while_it_starts_a_container_again_leaves_one_that_serves(node: Node, point: str) -> None:
    before = node.serve()
    node.stop()
    node.start(environ={"AGENTD_FAILPOINTS": f"{point}=kill"})
    wait_true(lambda: "Adopted" in node.reasons(), what="adopted")
    node.behind_its_back("kill", before.instance.container)
    assert node.process
    node.process.wait(timeout=60)
    node.start()
    after = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.attempt > 1, timeout=60)

    assert complete(after.endpoint)
    wait_true(lambda: node.containers() == [after.instance.container], what="one container, and no other")
    if point in {"after-spawn", "after-handle"}:
        assert after.instance.container == before.instance.container
        assert after.previous.diagnosis.code == "killed"


def test_a_container_that_was_started_again_is_known_though_the_database_is_lost_and_is_no_stray(
    make_node: Callable[..., Node],
) -> None:
    node = make_node(daemon={"sweep_seconds": 1, "sweep_min_age_seconds": 0.5})
    node.start()
    before = node.serve()
    node.behind_its_back("kill", before.instance.container)
    again = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.restarts == 1, timeout=30)
    node.kill()
    for file in (node.root / "state").glob("agent.db*"):
        file.unlink()
    node.start()
    after = node.wait(timeout=60)
    assert (after.instance.name, after.instance.pid) == (again.instance.name, again.instance.pid)
    time.sleep(3)  # some sweeps
    assert node.get().instance.pid == again.instance.pid
    assert node.containers() == [again.instance.container]
    assert complete(after.endpoint)


def test_a_dead_container_that_an_agent_died_before_removing_is_removed_by_the_next(node: Node) -> None:
    node.serve()
    node.stop()
    node.start(environ={"AGENTD_FAILPOINTS": "after-spawn=kill"})
    wait_true(lambda: "Adopted" in node.reasons(), what="adopted")
    with contextlib.suppress(AgentError):
        node.apply(runtime="docker", environment={"NEW": "one"})
    assert node.process
    node.process.wait(timeout=60)  # it had started the replacement, and not yet removed the dead one
    assert len(node.containers()) == 2

    node.start()
    after = node.wait(timeout=60)
    wait_true(lambda: node.containers() == [after.instance.container], what="the dead one removed")
    assert "StrayKilled" not in node.reasons()


def test_a_container_that_ended_while_no_agent_was_there_is_accounted_for_and_replaced(node: Node) -> None:
    before = node.serve()
    node.kill()
    node.behind_its_back("kill", before.instance.container)
    node.start()
    after = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.name != before.instance.name, timeout=30)
    assert after.previous.diagnosis.code == "killed"


def test_a_container_that_hangs_is_replaced(node: Node) -> None:
    before = node.serve()
    node.behind_its_back("pause", before.instance.container)
    after = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.instance.name != before.instance.name, timeout=60)
    assert after.previous.diagnosis.code == "unresponsive"
    wait_true(lambda: node.containers() == [after.instance.container], what="the hung one removed")


def test_a_container_that_somebody_pauses_or_renames_is_told(make_node: Callable[..., Node]) -> None:
    node = make_node(daemon={"sample_seconds": 0.5})
    node.start()
    before = node.serve(probes={"liveness": {"failure_threshold": 1000}})
    node.behind_its_back("rename", before.instance.container, "other-name")
    node.wait_until(lambda d: any(c.reason == "ContainerChanged" for c in d.conditions), timeout=30, what="told")
    assert "ContainerChanged" in node.reasons()


def test_the_log_of_a_container_is_read_and_followed_by_agentctl(node: Node) -> None:
    ready = node.serve()
    assert "llama" in agentctl(node, "logs", "m")
    command = [sys.executable, "-m", "agent.ctl", "--socket", str(node.control), "logs", "-f", "--tail", "0", "m"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as follower:
        assert follower.stdout is not None
        os.set_blocking(follower.stdout.fileno(), False)
        read = bytearray()

        def told() -> bool:
            complete(ready.endpoint)
            read.extend(follower.stdout.read() or b"")  # type: ignore[union-attr]
            return b"slot" in read

        try:
            wait_true(told, what="new lines", timeout=20)
        finally:
            follower.kill()
    node.behind_its_back("kill", ready.instance.container)
    again = node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.restarts == 1, timeout=30)
    assert "slot" in Path(again.previous.log_path).read_text()


def test_describe_names_image_digest_and_container(node: Node) -> None:
    ready = node.serve()
    shown = agentctl(node, "describe", "m")
    assert ready.instance.image_digest in shown
    assert ready.instance.container[:12] in shown
    assert "docker" in agentctl(node, "get", "m", "-o", "json")


def test_an_image_of_the_spec_is_the_one_that_runs(node: Node, registry: Registry, served: ImageReference) -> None:
    digest = registry.manifest("org/llama-server", "v1")["digest"]
    ready = node.serve(engine="llama.cpp", image=f"{served.name}@{digest}")

    assert (ready.instance.image, ready.instance.image_digest) == (served.name, digest)
    assert "set in the spec" in agentctl(node, "describe", "m")
    assert complete(ready.endpoint)["content"]


def test_images_of_deployments_are_listed_and_unknown_while_their_engine_hangs(node: Node) -> None:
    image = node.serve().instance.image

    def listed() -> pb.Artifact:
        with node.client() as client:
            (found,) = [one for one in client.list_artifacts() if one.format == "image"]
        return found

    one = listed()
    assert (one.source, one.state, list(one.used_by)) == (image, pb.ARTIFACT_STATE_EXTERNAL, ["deployments/m"])
    assert (one.digest, one.size_bytes > MIB) == (node.get().instance.image_digest, True)
    with node.client() as client, pytest.raises(AgentError, match="is an image, and the container engine's"):
        client.delete_artifact(one.name)
    node.engine.signal(signal.SIGSTOP)
    try:
        hung = listed()
    finally:
        node.engine.signal(signal.SIGCONT)
    assert (hung.source, hung.state, list(hung.used_by)) == (image, pb.ARTIFACT_STATE_UNKNOWN, ["deployments/m"])
    assert "does not answer within" in hung.kept_for


def test_stop_drains_and_leaves_nothing_running_and_delete_leaves_nothing(node: Node) -> None:
    node.serve()
    with node.client() as client:
        client.stop_deployment("m")
    stopped = node.wait(phase="stopped", timeout=30)
    assert stopped.instance.exit.code == 0
    found = {node.behind_its_back("inspect_container", id)["State"]["Running"] for id in node.containers()}
    assert True not in found
    with node.client() as client:
        client.start_deployment("m")
    node.wait(timeout=30)
    with node.client() as client:
        client.delete_deployment("m")
    wait_true(lambda: node.containers() == [], what="no container left", timeout=20)
    wait_true(lambda: not any((node.root / "state" / "instances").iterdir()), what="no directory left")


def test_two_deployments_share_an_image_and_nothing_else(node: Node) -> None:
    node.apply("a", runtime="docker")
    node.apply("b", runtime="docker")
    a, b = node.wait("a", timeout=60), node.wait("b", timeout=60)
    node.behind_its_back("kill", a.instance.container)
    node.wait_until(lambda d: PHASE[d.phase] == "ready" and d.restarts == 1, "a", timeout=30)

    assert complete(a.endpoint)
    assert node.get("b").instance.container == b.instance.container
    assert len(node.containers("a")) == 1


def test_a_container_engine_that_hangs_is_told_and_holds_up_nobody_else(node: Node) -> None:
    before = node.serve("boxed")
    node.engine.signal(signal.SIGSTOP)
    try:
        wait_true(lambda: bad_engine(node), timeout=30, what="told")
        node.apply("native", runtime="process")
        node.wait("native", timeout=30)
        node.kill()
        node.start()  # within the usual time
        with node.client() as client:
            assert len(client.get_status().deployments) == 2
        node.wait("native", timeout=30)
        node.apply("native", runtime="process", environment={"A": "b"})
        node.wait_until(lambda d: d.observed_generation == 2 and PHASE[d.phase] == "ready", "native", timeout=30)
        assert complete(before.endpoint)
        assert PHASE[node.get("boxed").phase] == "ready"
    finally:
        node.engine.signal(signal.SIGCONT)
    wait_true(lambda: not bad_engine(node), timeout=30, what="healed")
    assert node.get("boxed").restarts == 0
    assert node.containers("boxed") == [before.instance.container]


def bad_engine(node: Node) -> bool:
    with node.client() as client:
        conditions = client.get_node().conditions
    return any(each.type == "ContainerEngine" and each.status == pb.TERNARY_FALSE for each in conditions)


@pytest.mark.timeout(120 + 20 * KILLS)
def test_whatever_is_killed_at_any_moment_no_container_is_lost_doubled_or_left(make_node: Callable[..., Node]) -> None:
    """`CHAOS_KILLS` agents are killed, and a fifth as many container engines, while deployments come, change and go."""
    node = make_node(daemon={"sweep_min_age_seconds": 5})  # a container of an intent that was never written is a stray
    node.start()
    chance = random.Random(int(os.environ.get("CHAOS_SEED", "6")))
    node.serve("a")
    for turn in range(KILLS):
        with contextlib.suppress(AgentError):
            node.apply(chance.choice("abc"), runtime="docker", environment={"TURN": str(turn)})
            if chance.random() < 0.3:
                with node.client() as client:
                    client.delete_deployment(chance.choice("bc"), allow_missing=True)
        time.sleep(chance.uniform(0, 1.5))
        node.kill()
        if turn % 5 == 2:
            node.engine.kill()
            node.start()
            time.sleep(chance.uniform(0, 1))
            node.engine.start()
        else:
            node.start()
    with node.client() as client:
        wanted = {each.name.rpartition("/")[2] for each in client.list_deployments() if each.desired == pb.DESIRED_RUN}
    assert "a" in wanted
    for name in sorted(wanted):
        # What failed too often by what was done to it is started again, as an operator would.
        if PHASE[node.wait_until(settled, name, timeout=90, what="settled").phase] == "failed":
            with node.client() as client:
                client.restart_deployment(name)
        assert complete(node.wait(name, timeout=60).endpoint)
    wait_true(lambda: len(node.containers()) == len(wanted), timeout=60, what="one container for each, and no other")
    assert {node.get(name).instance.container for name in wanted} == {*node.containers()}


def settled(deployment: pb.Deployment) -> bool:
    return PHASE[deployment.phase] in {"ready", "failed"}


def test_podman_serves_adopts_replaces_and_cleans_up_as_docker_does(
    tmp_path: Path, tiny_model: Path, podman_service: Podman, served_image: ImageReference, line: Line
) -> None:
    del line  # which leads to the registry
    node = Node(tmp_path, tiny_model, podman_service, served_image)
    node.start()
    try:
        before = node.serve()
        assert complete(before.endpoint)
        assert before.instance.image_digest.startswith("sha256:")
        node.kill()
        node.start()
        wait_true(lambda: "Adopted" in node.reasons(), what="adopted")
        os.kill(before.instance.pid, signal.SIGKILL)
        after = node.wait_until(
            lambda d: PHASE[d.phase] == "ready" and d.instance.name != before.instance.name, timeout=60
        )
        assert after.previous.diagnosis.code == "killed"
        assert after.endpoint == before.endpoint
        assert complete(after.endpoint)
        with node.client() as client:
            client.delete_deployment("m")
        wait_true(lambda: node.containers() == [], what="no container left", timeout=20)
    finally:
        node.cleanup()
        node.remove_containers()
