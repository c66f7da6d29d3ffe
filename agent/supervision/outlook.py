"""What would happen: one plan with all that a person wants to know of it (`plan`), and the whole catalog's (`fit`).

Nothing is changed here, and what takes long is computed in threads: status answers meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from agent.engines import ENGINES
from agent.engines.base import LayersEngine, Spread
from agent.hardware.inventory import Inventory
from agent.models.errors import ProfileError
from agent.models.profile import Basis
from agent.planning.plan import Plan
from agent.planning.planner import plan
from agent.planning.request import DeviceState, Option, PlanRequest, Refusal
from agent.settings import Policy
from agent.spec import DeploymentSpec, Task
from agent.status import DiagnosisCode
from agent.supervision.models import described
from agent.supervision.preparation import Preparation, Surroundings
from agent.supervision.service import Fit, FitVerdict, Planned, Pool

if TYPE_CHECKING:
    from agent.models.catalog import Catalog, Entry


async def planned(request: PlanRequest) -> Planned:
    """The answer to `request`, with what it stands on."""
    answer = await asyncio.to_thread(plan, request)
    found = refused(answer) if isinstance(answer, Refusal) else _accepted(answer, request)
    return replace(found, pools=tuple(pools(request)))


def _accepted(answer: Plan, request: PlanRequest) -> Planned:
    policy, port = request.policy, request.spec.port
    host = policy.bind if answer.image is None else "0.0.0.0"  # noqa: S104 - of the container's own network
    engine, spec = ENGINES[answer.engine], request.spec
    command = engine.command(answer, host, port if isinstance(port, int) else policy.ports.first)
    environment = {**spec.environment, **command.environment}
    if answer.image is not None and engine.container is not None:
        from agent.supervision import container_launch  # noqa: PLC0415 - most nodes run no container

        environment = container_launch.environment(answer, engine.container, environment)
    return Planned(
        answer,
        None,
        command.argv,
        environment,
        tuple(spec.secrets),
        verdict=_verdict(answer, request),
        notes=tuple(dict.fromkeys(_notes(answer, request))),
    )


def refused(answer: Refusal) -> Planned:
    """A refusal in numbers and lists. Where planning gives no list of remedies, its hint names them."""
    diagnosis = answer.diagnosis
    too_large = diagnosis.code is DiagnosisCode.DOES_NOT_FIT
    hints = diagnosis.hint.split("; ") if too_large else [diagnosis.hint]
    return Planned(
        None,
        diagnosis,
        verdict=FitVerdict.DOES_NOT_FIT if too_large else FitVerdict.NOT_SERVED,
        missing_bytes=answer.missing_bytes,
        rejected=answer.rejected,
        remedies=answer.remedies or tuple(filter(None, hints)),
    )


async def fits(
    preparation: Preparation, template: DeploymentSpec, around: Surroundings, task: str
) -> AsyncIterator[Fit]:
    """Each model of the catalog that is made for `task` ("": each for its own), planned as `template` says."""
    catalog = await preparation.models.catalog()
    entries = [entry for entry in catalog.entries if task in ("", entry.task)]
    for number, entry in enumerate(entries, 1):
        spec = template.model_copy(update={"model": f"hf:{entry.id}", "task": Task(entry.task)})
        answer = await _fit(preparation, spec, catalog, entry, around)
        yield Fit(described(catalog, entry), answer, number, len(entries))


async def _fit(
    preparation: Preparation, spec: DeploymentSpec, catalog: Catalog, entry: Entry, around: Surroundings
) -> Planned:
    try:
        meaning = await preparation.models.of(catalog, entry, catalog.variants(entry))
    except ProfileError as error:
        return refused(Refusal(error.diagnosis))
    return await planned(preparation.request(spec, 0, meaning, around))


def pools(request: PlanRequest) -> Iterator[Pool]:
    """Memory of the host, then of each device, and what of it is others'."""
    yield _host(request.inventory, request.policy, request)
    for device in request.inventory.devices:
        state = request.devices.get(device.id, DeviceState())
        strangers = max(0, state.used - state.resident - state.released)
        yield Pool(device.id, device.name, device.memory_bytes, min(device.memory_bytes, strangers + state.reserved))


def _host(inventory: Inventory, policy: Policy, request: PlanRequest) -> Pool:
    """As `amounts.free_memory` counts it: the larger of what is promised and what is in use."""
    total, reserve = inventory.memory.total, policy.host_memory_reserve_bytes
    outstanding = max(0, request.reserved_bytes - request.resident_bytes)
    used = total - inventory.memory.available - request.released_bytes + outstanding
    return Pool("host", "host memory", total, min(total, max(request.reserved_bytes, used)), min(total, reserve))


def _verdict(answer: Plan, request: PlanRequest) -> FitVerdict:
    engine = ENGINES[answer.engine]
    if not answer.devices:
        return FitVerdict.ON_CPU
    if engine.capabilities.spread is Spread.LAYERS:
        option = _option(answer, request)
        if sum(answer.placement.layers) < cast("LayersEngine", engine).device_layers(option.profile):
            return FitVerdict.PARTLY
    assured = answer.capacity is None or answer.capacity.assured
    return FitVerdict.FITS if assured else FitVerdict.UNSURE


def _option(answer: Plan, request: PlanRequest) -> Option:
    """The one that was chosen."""
    same = (option for option in request.options if option.profile.path == answer.variant.path)
    return next(same, request.options[0])


def _notes(answer: Plan, request: PlanRequest) -> Iterator[str]:
    """What the plan assumes or doubts."""
    if answer.capacity is not None and not answer.capacity.assured:
        yield answer.capacity.doubt
    for reason in answer.reasons:
        if reason.code == "assumed":
            yield f"{reason.field} {reason.value}: {reason.sentence.removeprefix('assumed: ')}"
    option = _option(answer, request)
    yield from option.profile.notes
    if option.profile.basis == Basis.CONFIG:
        yield "bytes are counted from the model's configuration in the catalog, not read from its files"
