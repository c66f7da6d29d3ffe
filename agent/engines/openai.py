"""What servers with OpenAI's API have in common: the requests of probes, and what /v1/models tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agent.engines.base import HttpReply, HttpRequest
from agent.planning.plan import Plan
from agent.status import Granted

HEALTH = HttpRequest("GET", "/health")
MODELS = HttpRequest("GET", "/v1/models")
METRICS = HttpRequest("GET", "/metrics")


def post(path: str, body: Mapping[str, object]) -> HttpRequest:
    return HttpRequest("POST", path, json.dumps(body))


def inference(plan: Plan, *, messages: bool = False) -> HttpRequest:
    """One token, embedding or score for real.

    A chat is probed as a completion, because not every model that chats has a template on the server; `messages` is
    for servers that have no /v1/completions.
    """
    model = plan.model_name
    if plan.task == "embedding":
        return post("/v1/embeddings", {"model": model, "input": "a"})
    if plan.task == "rerank":
        return post("/v1/rerank", {"model": model, "query": "a", "documents": ["a"]})
    if messages:
        content = [{"role": "user", "content": "a"}]
        return post("/v1/chat/completions", {"model": model, "messages": content, "max_tokens": 1})
    return post("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0})


def decoded(reply: HttpReply) -> Any:
    """The JSON of a good reply, else None: what the engine does not tell is not known."""
    if reply.status != 200:
        return None
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError):
        return None


def served(reply: HttpReply) -> Mapping[str, Any]:
    """The first model of a reply to /v1/models; empty where it names none."""
    body = decoded(reply)
    models = body.get("data") if isinstance(body, dict) else None
    first = models[0] if isinstance(models, list) and models else None
    return first if isinstance(first, dict) else {}


def granted(reply: HttpReply) -> Granted:
    """The served name; the context in tokens (`max_model_len`) and the sequences at once (`max_num_seqs`, which our own
    launchers tell) where the server says them.
    """
    model = served(reply)
    name, length, sequences = model.get("id"), model.get("max_model_len"), model.get("max_num_seqs")
    return Granted(
        max_model_len=length if isinstance(length, int) else None,
        max_num_seqs=sequences if isinstance(sequences, int) else None,
        model=name if isinstance(name, str) else "",
    )
