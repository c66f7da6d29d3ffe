"""The launcher of the embedded engine, run as the program that it is."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.embedded import llama_server
from tests.gguf_factory import make_gguf

LAUNCHER = Path(llama_server.__file__)
DEADLINE = 20.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str]:
        """Status 0 while nothing listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()
        except ConnectionError:
            return 0, ""
        finally:
            connection.close()

    def wait_ready(self) -> set[int]:
        """Until /health is 200; the statuses that were seen before."""
        seen, end = set(), time.monotonic() + DEADLINE
        while time.monotonic() < end and self.process.poll() is None:
            status, _ = self.ask("GET", "/health")
            if status == 200:
                return seen
            seen.add(status)
        raise AssertionError(f"not ready, exit status {self.process.poll()}")

    def wait_stoppable(self) -> None:
        """Until SIGTERM has a handler: health answers a moment before the launcher is back from the load."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            caught = int(status.split("SigCgt:")[1].split()[0], 16)
            if caught >> (signal.SIGTERM - 1) & 1:
                return
        raise AssertionError("no handler")


@contextmanager
def serving(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-E", "-P", str(LAUNCHER), "--port", str(port), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd="/",
        env=os.environ | (environment or {}),
    )
    try:
        yield Server(process, port)
    finally:
        process.kill()
        process.wait(DEADLINE)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-E", "-P", str(LAUNCHER), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_it_answers_chat_completions_under_its_alias_and_ends_with_status_0_at_sigterm(model: Path) -> None:
    with serving("-m", str(model), "--alias", "tiny", "-c", "1024", "-np", "2", "--metrics", "--fit", "off") as server:
        server.wait_ready()
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 4,
            "grammar": "root ::= [a-z ]+",
        }
        status, reply = server.ask("POST", "/v1/chat/completions", body)
        metrics, _ = server.ask("GET", "/metrics")
        server.wait_stoppable()
        server.process.send_signal(signal.SIGTERM)

        assert status == 200
        assert json.loads(reply)["model"] == "tiny"
        assert 1 <= json.loads(reply)["usage"]["completion_tokens"] <= 4  # random weights may end early
        assert metrics == 200
        assert server.process.wait(DEADLINE) == 0


def test_the_context_is_divided_among_the_slots(model: Path) -> None:
    with serving("-m", str(model), "-c", "2048", "-np", "4", "--no-kv-unified", "--fit", "off") as server:
        server.wait_ready()
        _, reply = server.ask("GET", "/slots")

    assert [slot["n_ctx"] for slot in json.loads(reply)] == [512] * 4


def test_while_the_model_loads_health_says_so_with_503(tmp_path: Path) -> None:
    # 64 Ki tokens of vocabulary take the server 0.1 s to read: many times a probe.
    slow = make_gguf(tmp_path / "slow.gguf", vocab=65536, hidden=64, layers=1)
    with serving("-m", str(slow), "-c", "512", "-np", "1", "--fit", "off") as server:
        assert 503 in server.wait_ready()


def test_sigterm_during_the_load_ends_it_at_once(tmp_path: Path) -> None:
    slow = make_gguf(tmp_path / "slow.gguf", vocab=65536, hidden=64, layers=1)
    with serving("-m", str(slow), "-c", "512", "-np", "1", "--fit", "off") as server:
        while server.ask("GET", "/health")[0] != 503:
            assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)

        assert server.process.wait(DEADLINE) == -signal.SIGTERM


def test_api_keys_come_from_the_environment_and_health_stays_open(model: Path) -> None:
    with serving("-m", str(model), "-c", "512", "-np", "1", environment={"LLAMA_API_KEY": "k1,k2"}) as server:
        server.wait_ready()

        assert server.ask("GET", "/slots")[0] == 401
        assert server.ask("GET", "/slots", Authorization="Bearer k2")[0] == 200


def test_a_truncated_model_ends_it_with_status_1_and_the_servers_own_lines(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model.read_bytes()[:-100_000])

    done = run("-m", str(broken), "--port", str(free_port()))

    assert done.returncode == 1
    assert "data is not within the file bounds" in done.stderr
    assert "exiting due to model loading error" in done.stderr


def test_a_port_in_use_ends_it_with_status_1(model: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = run("-m", str(model), "--port", str(other.getsockname()[1]))

    assert done.returncode == 1
    assert "couldn't bind HTTP server socket" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--bogus", "1"), "error: invalid argument: --bogus"),
        (("positional",), "error: invalid argument: positional"),
        (("--metrics=true",), "error: invalid argument: --metrics=true"),
        (("-c",), 'error while handling argument "-c": expected value for argument'),
        (("-c", "many"), 'error while handling argument "-c": invalid literal'),
        (("-ctk", "q9"), 'error while handling argument "-ctk"'),
        (("--device", "CUDA0"), 'error while handling argument "--device": this build has no devices'),
        ((), "error: --model is required"),
    ],
)
def test_a_bad_command_line_ends_it_with_status_1_and_llama_servers_line(arguments: tuple[str, ...], line: str) -> None:
    done = run(*arguments)

    assert done.returncode == 1
    assert done.stderr.startswith(line)


def test_the_version_names_the_build_and_the_wheel() -> None:
    done = run("--version")

    assert done.returncode == 0
    assert done.stdout.startswith("version: ")
    assert "(xllamacpp " in done.stdout


def test_the_enums_are_those_of_the_library() -> None:
    library = pytest.importorskip("xllamacpp")

    for name, value in llama_server.CACHE_TYPES.items():
        assert getattr(library.ggml_type, f"GGML_TYPE_{name.upper()}") == value
    for name, value in llama_server.POOLING.items():
        assert getattr(library.llama_pooling_type, f"LLAMA_POOLING_TYPE_{name.upper()}") == value
    flash = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}
    for name, value in llama_server.FLASH_ATTENTION.items():
        assert getattr(library.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash[name]}") == value


def test_every_option_exists_in_the_parameters_of_the_library_and_in_llama_server() -> None:
    """A misspelt attribute would be set on nothing, or refused only when an operator first uses the flag."""
    library = pytest.importorskip("xllamacpp")
    samples = {"-m": "x", "-a": "a,b", "-ctk": "q8_0", "-ctv": "f16", "-fa": "on", "-fit": "off", "--pooling": "mean"}
    samples |= {"--host": "127.0.0.1", "-dev": "none", "--cors-origins": "localhost"}
    known = (LAUNCHER.parent.parent / "engines" / "llama_cpp_options.txt").read_text().split()
    for names in llama_server._OPTIONS:
        llama_server.parse([names.split()[0], samples.get(names.split()[0], "1")], library.CommonParams())
    for names in llama_server._FLAGS:
        llama_server.parse([names.split()[0]], library.CommonParams())

    assert {name for names in (*llama_server._OPTIONS, *llama_server._FLAGS) for name in names.split()} <= set(known)
