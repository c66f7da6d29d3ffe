"""From a plan to a launch request: port, secrets, command, directories, and the record of the intent."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets as random_ids
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import structlog

from agent.engines.base import Engine
from agent.errors import NotFound, StoreError
from agent.frozen import frozen
from agent.planning.plan import Plan
from agent.runtimes import logs
from agent.runtimes.base import AGAIN, Handle, Identity, LaunchError, LaunchRequest, Resources
from agent.spec import DeploymentSpec
from agent.status import Diagnosis, DiagnosisCode
from agent.store.records import DeploymentRecord, InstanceRecord
from agent.supervision import clock, codec, secrets
from agent.supervision.preparation import PreparationError
from agent.supervision.services import Services

log = structlog.get_logger(__name__)

#: What an engine inherits of the daemon's environment; everything else (secrets above all) stays here.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE")

#: What the system answers when a disk takes no more, or never did.
DISK_REFUSES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

#: In the cache directory: what engines in containers compile, a folder for each deployment.
COMPILED = "compiled"
#: The records of an instance, in its own directory.
RECORD = "record.json"


@frozen
class Launch:
    """The intent as it is recorded, and the request as it is executed."""

    record: InstanceRecord
    request: LaunchRequest


@frozen
class Before:
    """The instance before: the port that it was to have (0: there was none), its handle if it ran, and whether this is
    the first failure after it was healthy, so that its container is as good as a new one."""

    port: int
    handle: Handle | None
    healthy: bool


def identity(node_uid: str, record: InstanceRecord) -> Identity:
    return Identity(node_uid, record.deployment, record.generation, record.attempt, record.id)


def directory(record: InstanceRecord) -> Path:
    return Path(record.directory)


def log_path(record: InstanceRecord) -> Path:
    return Path(record.log_path)


def token(spec: DeploymentSpec, engine: Engine) -> str:
    """The engine's API key, where the spec gives one, for our own probes; "" otherwise or if it is gone by now. Reads a
    file: not for the event loop."""
    for variable in engine.secret_flags().values():
        if variable in spec.secrets:
            try:
                return secrets.resolve({variable: spec.secrets[variable]})[variable]
            except PreparationError:
                return ""
    return ""


async def prepare(
    plan: Plan, plan_json: str, spec: DeploymentSpec, attempt: int, services: Services, before: Before
) -> Launch:
    """Raises `PreparationError` (secret_missing, port_taken). Touches nothing but the directories it names."""
    values = await asyncio.to_thread(secrets.resolve, spec.secrets) if spec.secrets else {}
    # Nothing is awaited from here on, so that nobody else takes the port before the caller has it.
    engine, config = services.engine(plan.engine), services.config
    contained = plan.image is not None
    ran = before.handle if contained and before.handle and before.handle.runtime == plan.runtime else None
    again = ran if ran and before.healthy and ran.data.get("socket") == services.preparation.socket else None
    port = services.ports.take(plan.deployment, spec.port, before.port, releasing=ran is not None)
    command = engine.command(plan, "0.0.0.0" if contained else config.policy.bind, port)  # noqa: S104 - the container's
    instance = f"{plan.deployment}-{attempt}-{random_ids.token_hex(3)}"
    record = InstanceRecord(
        id=instance, deployment=plan.deployment, generation=plan.generation, attempt=attempt, runtime=plan.runtime,
        plan_json=plan_json, port=port, directory=str(services.instances / instance),
        log_path=str(config.directories.logs / plan.deployment / f"{attempt}.log"), created_at=clock.wall(),
        handle_json=codec.dump_handle(replace(again, data={**again.data, AGAIN: True})) if again else "",
    )  # fmt: skip
    # The command's come last: they say which devices the engine may see.
    variables = {**spec.environment, **values, **command.environment}
    container = None
    if contained and (how := engine.container) is not None:
        from agent.supervision import container_launch  # noqa: PLC0415 - most nodes run no container

        place = container_launch.Place(
            services.preparation.socket, config.policy.bind, port, compiled(plan.deployment, services),
            device_files(plan, services),
        )  # fmt: skip
        container = container_launch.container(plan, how, place)
        environment = container_launch.environment(plan, how, variables)
    else:
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | variables
    request = LaunchRequest(
        identity=identity(services.node_uid, record),
        argv=command.argv,
        environment=environment,
        directory=directory(record),
        log=log_path(record),
        resources=Resources(spec.limits.memory_bytes, spec.limits.cpus, spec.limits.pids),
        container=container,
        again=again,
    )
    return Launch(record, request)


def refusal(error: Exception) -> Diagnosis:
    """Why no process was created. A disk that takes no writes is no fault of the engine, wherever it shows first."""
    cause = error.__cause__ or error
    disk = isinstance(error, StoreError) or (isinstance(cause, OSError) and cause.errno in DISK_REFUSES)
    if isinstance(cause, TimeoutError):
        hint = "containers go on meanwhile; `systemctl status docker` (or podman) tells more"
        return Diagnosis(DiagnosisCode.RUNTIME_UNAVAILABLE, str(error), hint=hint)
    if disk:
        return Diagnosis(DiagnosisCode.STORE_FAILED, str(error), hint=getattr(error, "hint", ""))
    if isinstance(error, LaunchError):
        return Diagnosis(error.code, str(error), hint=error.hint)
    return Diagnosis(DiagnosisCode.LAUNCH_FAILED, str(error))


def write_record(instance: InstanceRecord, deployment: DeploymentRecord) -> None:
    """Leave the records beside a running instance, so that it can be taken over even if the database is lost.

    Not fsynced: an engine that runs is proof that the host did not go down since.
    """
    body = json.dumps({"deployment": asdict(deployment), "instance": asdict(instance)})
    (directory(instance) / RECORD).write_text(body)


def device_files(plan: Plan, services: Services) -> tuple[str, ...]:
    """Of the plan's devices. Raises `PreparationError` for one that is not there any more."""
    try:
        return tuple(file for id in plan.devices for file in services.devices.find(id).device.files)
    except NotFound as error:
        raise PreparationError(Diagnosis(DiagnosisCode.DEVICE_FAILED, error.message)) from error


def compiled(deployment: str, services: Services) -> Path:
    """Where an engine in a container keeps what it compiles for a deployment."""
    return services.config.directories.cache / COMPILED / deployment


def remove_compiled(deployment: str, services: Services) -> None:
    """It is over; where its engine ran as a user whose files are not ours to remove, they stay."""
    shutil.rmtree(compiled(deployment, services), ignore_errors=True)


async def forget(
    ended: InstanceRecord, handle: Handle | None, dropped: Sequence[InstanceRecord], services: Services
) -> None:
    """Remove what the runtime keeps of `ended`, and the logs of the runs in `dropped`."""
    try:
        await services.runtime.of(ended.runtime, handle).forget(handle, directory(ended))
    except OSError as error:  # what is left of a container is a stray, which the sweep finds
        log.warning("instance not forgotten", instance=ended.id, error=str(error))
    for record in dropped:
        await asyncio.to_thread(logs.remove, log_path(record))
