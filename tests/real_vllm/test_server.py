"""The adapter held against a real server: a plan is made, run, probed, read back, and ended in every way."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.engines import ENGINES
from agent.engines.base import HttpReply, HttpRequest
from agent.hardware import host
from agent.models.profiles import Profiles
from agent.planning.plan import Plan
from agent.planning.planner import plan
from agent.planning.request import Option, PlanRequest
from agent.settings import Policy
from agent.spec import parse_spec
from agent.status import DiagnosisCode, ExitStatus
from tests.harness import free_port, wait_true

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ENGINE = ENGINES["vllm"]
DEADLINE = 240.0


async def planned(binary: str, model: Path, **fields: Any) -> Plan:
    located = ENGINE.locate([binary])
    assert located is not None
    assert located.accelerators == {"cpu"}
    answer = plan(
        PlanRequest(
            spec=parse_spec({"name": "d", "model": f"file:{model}", "engine": "vllm"} | fields),
            generation=1,
            options=(Option(await Profiles().profile(model), f"file:{model}"),),
            inventory=host.inventory(),
            policy=Policy(),
            engines={"vllm": ENGINE},
            located={"vllm": located},
        )
    )
    assert isinstance(answer, Plan), answer
    return answer


class Server:
    """One start of a plan's own command, as the process runtime starts it: in a directory of its own."""

    def __init__(self, chosen: Plan, folder: Path, environment: dict[str, str] | None = None) -> None:
        (folder / "tmp").mkdir(parents=True)
        self.plan, self.port, self.log = chosen, free_port(), folder / "log"
        command = ENGINE.command(chosen, "127.0.0.1", self.port)
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        own = {"TMPDIR": str(folder / "tmp"), "SPT_NOENV": "1"}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command.argv, stdout=output, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True,
                env={**inherited, **own, **command.environment, **(environment or {})},
            )  # fmt: skip

    def send(self, request: HttpRequest, timeout: float = 30.0, key: str = "") -> HttpReply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        try:
            connection.request(request.method, request.path, request.body or None, headers)
            reply = connection.getresponse()
            return HttpReply(reply.status, reply.read().decode())
        except OSError:
            return HttpReply(0, "")
        finally:
            connection.close()

    def wait_ready(self) -> int:
        """How often it was seen loading before it was ready; every other answer is a failure."""
        end, seen = time.monotonic() + DEADLINE, 0
        while (reply := self.send(ENGINE.startup_probe(self.plan))).status != 200:
            assert ENGINE.loading(reply), reply
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < end, self.log.read_text()[-4000:]
            seen += 1
            time.sleep(0.2)
        return seen

    def parts(self) -> dict[str, psutil.Process]:
        """The other processes of its group by the titles that vLLM gives them."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                title = " ".join(process.cmdline())
                if title.startswith("VLLM::") and os.getpgid(process.pid) == self.process.pid:
                    found[title.strip()] = process
        return found

    def ended(self) -> ExitStatus:
        code = self.process.wait(DEADLINE)
        return ExitStatus(code=code) if code >= 0 else ExitStatus(signal=-code)

    def clean(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def started(chosen: Plan, folder: Path, environment: dict[str, str] | None = None) -> Iterator[Server]:
    server = Server(chosen, folder, environment)
    try:
        yield server
    finally:
        server.clean()


LIMITS = {"max_num_seqs": 4, "max_model_len": 500}


async def test_a_server_is_seen_loading_and_grants_what_was_planned_and_computes_and_stops(
    vllm: str, model: Path, tmp_path: Path
) -> None:
    chosen = await planned(vllm, model, served_name="served", limits=LIMITS)
    assert chosen.capacity is not None
    with started(chosen, tmp_path / "i") as server:
        assert server.wait_ready() > 0  # refused connections, and nothing else
        granted = ENGINE.parse_granted([server.send(request) for request in ENGINE.granted_requests(chosen)])
        assert (granted.model, granted.max_model_len) == ("served", 500)
        assert granted.kv_tokens == chosen.capacity.kv_tokens

        def activity() -> Any:
            return ENGINE.parse_activity(server.send(ENGINE.activity_request(chosen)).body)

        before = activity()
        assert (before.running, before.waiting, before.work) == (0, 0, 0)
        assert server.send(ENGINE.liveness_probe(chosen)).status == 200
        assert activity() == before
        assert server.send(ENGINE.inference_probe(chosen)).status == 200
        assert activity().work > before.work

        chat = {"model": "served", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        reply = server.send(HttpRequest("POST", "/v1/chat/completions", json.dumps(chat)))
        assert json.loads(reply.body)["usage"]["completion_tokens"] <= 8
        body = {"model": "served", "prompt": "hello", "max_tokens": 8, "stream": True, "ignore_eos": True}
        streamed = server.send(HttpRequest("POST", "/v1/completions", json.dumps(body))).body
        assert streamed.count("data: ") > 8
        assert streamed.rstrip().endswith("data: [DONE]")

        text = server.send(ENGINE.activity_request(chosen)).body
        assert all(name in text for name in ENGINE.metrics.values())
        assert "VLLM::EngineCore" in server.parts()

        server.process.terminate()
        assert server.ended().code == 0
        assert not server.parts()
    assert not re.search(r'"GET /(health|metrics|v1/models) ', server.log.read_text())  # probes are not logged


async def test_a_plan_of_many_names_and_a_key_is_served_too(vllm: str, model: Path, tmp_path: Path) -> None:
    """A directory's name that is too long for sockets, and an API key from the environment."""
    chosen = await planned(vllm, model, limits=LIMITS)
    with started(chosen, tmp_path / ("x" * 150), {"VLLM_API_KEY": "s3cret"}) as server:
        server.wait_ready()

        assert server.send(ENGINE.inference_probe(chosen)).status == 401
        assert server.send(ENGINE.inference_probe(chosen), key="s3cret").status == 200
        assert server.send(ENGINE.activity_request(chosen)).status == 200

    assert "s3cret" not in server.log.read_text()


@pytest.mark.parametrize("part", ["VLLM::EngineCore", "VLLM::Worker"])
async def test_a_part_that_is_killed_ends_the_server_with_status_0_and_that_is_a_crash(
    part: str, vllm: str, model: Path, tmp_path: Path
) -> None:
    chosen = await planned(vllm, model, limits=LIMITS)
    with started(chosen, tmp_path / "i") as server:
        server.wait_ready()

        server.parts()[part].kill()
        status = server.ended()

        assert status.code == 0
        found = ENGINE.diagnose(status, server.log.read_text()[-65536:])
        assert found.code is DiagnosisCode.CRASHED
        assert ("worker process" if part == "VLLM::Worker" else "engine core") in found.message


async def test_parts_outlive_a_killed_server_in_its_process_group(vllm: str, model: Path, tmp_path: Path) -> None:
    chosen = await planned(vllm, model, limits=LIMITS)
    with started(chosen, tmp_path / "i") as server:
        server.wait_ready()
        parts = server.parts()

        server.process.kill()
        status = server.ended()

        assert ENGINE.diagnose(status, server.log.read_text()[-65536:]).code is DiagnosisCode.KILLED
        assert any(part.is_running() and part.status() != psutil.STATUS_ZOMBIE for part in parts.values())
        os.killpg(server.process.pid, signal.SIGKILL)
        wait_true(lambda: not any(part.is_running() for part in parts.values()), what="the group is gone")


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"extra_args": ("--no-such-flag",)}, DiagnosisCode.BAD_FLAG, "--no-such-flag"),
        ({"path": "/nonexistent/model"}, DiagnosisCode.MODEL_MISSING, "/nonexistent/model"),
        ({"pool": 300_000}, DiagnosisCode.CACHE_TOO_SMALL, "500 tokens"),
    ],
    ids=["flag", "model", "pool"],
)
async def test_a_start_that_fails_is_diagnosed(
    change: dict[str, Any], code: DiagnosisCode, words: str, vllm: str, model: Path, tmp_path: Path
) -> None:
    chosen = await planned(vllm, model, limits=LIMITS)
    assert chosen.capacity is not None
    broken = replace(
        chosen,
        extra_args=change.get("extra_args", ()),
        variant=replace(chosen.variant, path=change.get("path", chosen.variant.path)),
        capacity=replace(chosen.capacity, kv_bytes=change.get("pool", chosen.capacity.kv_bytes)),
    )
    with started(broken, tmp_path / "i") as server:
        found = ENGINE.diagnose(server.ended(), server.log.read_text()[-65536:])

    assert found.code is code
    assert words in found.message


def test_the_recorded_options_are_those_of_the_parser(vllm: str) -> None:
    """An option that the record lacks could be given and would not be known; one that is gone would fail the start."""
    script = (
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "counts = {None: '1', 0: '0'}\n"
        "for action in make_arg_parser(FlexibleArgumentParser())._actions:\n"
        "    if action.option_strings:\n"
        "        print(*action.option_strings, counts.get(action.nargs, action.nargs))\n"
    )
    done = subprocess.run(
        [Path(vllm).with_name("python"), "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    record = Path(__file__).parents[2] / "agent" / "engines" / "vllm_options.txt"

    recorded = [line for line in record.read_text().splitlines() if not line.startswith("#")]

    assert sorted(line for line in done.stdout.splitlines() if line.startswith("-")) == sorted(recorded)
