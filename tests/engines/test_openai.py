"""Probes of servers with OpenAI's API, and what they tell of their model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.engines import openai
from agent.engines.base import HttpReply
from agent.planning.plan import Limits, MemoryBudget, Plan, Variant
from agent.status import Granted

PLAN = Plan(
    deployment="d", generation=1, model_name="served", task="chat", engine="vllm", engine_version="1",
    binary=("/usr/bin/vllm",), runtime="process", variant=Variant("file:/m", "/m", "safetensors", "bf16", 1, "llama"),
    devices=(), limits=Limits(4, 1000, "auto", 2048, 3), budgets=(MemoryBudget("host", ()),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("task", "messages", "path"),
    [
        ("chat", False, "/v1/completions"),
        ("chat", True, "/v1/chat/completions"),
        ("completion", False, "/v1/completions"),
        ("embedding", False, "/v1/embeddings"),
        ("rerank", False, "/v1/rerank"),
    ],
)
def test_each_task_is_probed_by_one_small_request_of_its_kind(task: str, messages: bool, path: str) -> None:
    request = openai.inference(replace(PLAN, task=task), messages=messages)
    body = json.loads(request.body)

    assert (request.method, request.path, body["model"]) == ("POST", path, "served")
    assert body.get("max_tokens", 1) == 1


def test_the_served_name_and_the_context_are_read() -> None:
    body = {"object": "list", "data": [{"id": "served", "max_model_len": 4096}, {"id": "lora"}]}

    assert openai.granted(HttpReply(200, json.dumps(body))) == Granted(max_model_len=4096, model="served")


@pytest.mark.parametrize(
    "reply",
    [
        HttpReply(503, '{"data":[{"id":"served"}]}'),
        HttpReply(200, "<html>"),
        HttpReply(200, "[]"),
        HttpReply(200, '{"data":[]}'),
        HttpReply(200, '{"data":[7]}'),
        HttpReply(200, '{"data":{"id":"x"}}'),
        HttpReply(200, '{"data":[{"id":7,"max_model_len":"long"}]}'),
    ],
)
def test_what_is_not_told_is_not_known(reply: HttpReply) -> None:
    assert openai.granted(reply) == Granted()


@pytest.mark.parametrize("body", ["", "{", "[" * 200_000, "\ud800"])
def test_a_reply_that_is_no_json_says_nothing(body: str) -> None:
    assert openai.granted(HttpReply(200, body)) == Granted()
