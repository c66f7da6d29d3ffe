"""Records as a node has them, for the tests of the store."""

import json

from agent.status import Desired, Event
from agent.store.records import DeploymentRecord, InstanceRecord, MeasurementRecord, RequestRecord

#: As long as the plan of a real model: longer than half a page, so that rows have overflow pages.
PLAN = json.dumps({"reasons": ["a sentence that says why this value was chosen, with its numbers"] * 40})


def deployment(name: str = "a", generation: int = 1) -> DeploymentRecord:
    return DeploymentRecord(
        name=name,
        uid=f"uid-{name}",
        generation=generation,
        etag=f"etag-{generation}",
        desired=Desired.RUN,
        restart_serial=0,
        spec_json=json.dumps({"name": name, "model": "file:/models/a.gguf"}),
        supervision_json="{}",
        created_at=1_700_000_000,  # an int, as callers may give it
        updated_at=1_700_000_000.25,
    )


def instance(id: str = "a-1", *, deployment: str = "a", attempt: int = 1) -> InstanceRecord:
    return InstanceRecord(
        id=id,
        deployment=deployment,
        generation=1,
        attempt=attempt,
        runtime="process",
        plan_json=PLAN,
        port=8100,
        directory="/state/instances/a-1",
        log_path="/logs/a-1.log",
        created_at=1_700_000_000.5,
        handle_json='{"pid": 4711}',
        ready_at=1_700_000_001.5,
    )


def measurement(id: str = "n-a-1", at: float = 1_700_000_002.5) -> MeasurementRecord:
    return MeasurementRecord(
        id=id,
        node="n",
        host="host",
        imported=0,
        at=at,
        model="file:/models/a.gguf",
        key_json='{"engine": "llama.cpp"}',
        terms_json='[{"pool": "host", "name": "weights", "bytes": 1}]',
    )


def event(deployment: str = "a", message: str = "a sentence") -> Event:
    return Event("Started", message, deployment=deployment, instance=f"{deployment}-1", at=1_700_000_000.125)


def request(id: str = "r", at: float = 0.0) -> RequestRecord:
    return RequestRecord(id, "apply", "sha256:00", "a", 1, at)
