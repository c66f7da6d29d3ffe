"""What real engines do that a supervisor must survive. vLLM's and MLX LM's habits: tests/real_vllm, tests/real_mlx."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request

from tests.harness import Daemon, wait_true


def _open_request(endpoint: str) -> socket.socket:
    """An answer of many tokens that somebody waits for, in one piece."""
    host, _, port = endpoint.removeprefix("http://").partition(":")
    body = json.dumps(
        {"prompt": "a", "n_predict": 100_000, "ignore_eos": True, "n_probs": 200, "grammar": "root ::= [a-z ]+"}
    )
    client = socket.create_connection((host, int(port)))
    head = f"POST /completion HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    client.sendall(f"{head}\r\n\r\n{body}".encode())
    return client


def test_llama_server_with_an_open_request_does_not_end_at_term_and_is_killed_when_its_time_is_over(
    node: Daemon,
) -> None:
    limits = {"max_num_seqs": 1, "max_model_len": 2048}
    node.start().apply(limits=limits, drain_seconds=0, stop_seconds=1)
    endpoint = node.wait().endpoint

    def busy() -> bool:
        with urllib.request.urlopen(endpoint + "/metrics", timeout=30) as reply:
            return "llamacpp:requests_processing 1" in reply.read().decode()

    with _open_request(endpoint):
        wait_true(busy)
        with node.client() as client:
            client.stop_deployment("m")
        stopped = node.wait(phase="stopped")
    assert stopped.instance.exit.signal == signal.SIGKILL  # TERM alone did not end it within a second
    assert node.engines() == []
