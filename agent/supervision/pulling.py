"""Pulls that an operator asks for: which variant is meant, and telling how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

from agent.errors import AgentError, FailedPrecondition, InvalidArgument, NotFound
from agent.planning.planner import plan
from agent.planning.request import Refusal
from agent.references import HubReference
from agent.spec import DeploymentSpec
from agent.status import Diagnosis, DiagnosisCode, Progress
from agent.supervision.artifacts import Artifacts
from agent.supervision.preparation import Held, Preparation, PreparationError
from agent.supervision.service import ArtifactState, Pulling

#: Seconds between two messages: what moves faster is nothing to look at.
_PERIOD = 0.1

#: Tells which reference it is, and how far.
Show = Callable[[str, Progress | None], None]
#: Brings the files, and returns the path that an engine opens.
Bring = Callable[[Show], Coroutine[Any, Any, str]]


def admitted(reference: str, admit: Callable[[dict[str, Any]], DeploymentSpec]) -> DeploymentSpec:
    """A spec that asks for nothing but the model. Raises `InvalidArgument` for what the node's policy refuses."""
    try:
        return admit({"name": "pull", "model": reference})
    except InvalidArgument as error:
        violations = tuple(replace(one, field="reference") for one in error.violations if one.field == "model")
        raise InvalidArgument(error.message, violations=violations or error.violations, hint=error.hint) from None


async def bring(preparation: Preparation, spec: DeploymentSpec, held: Callable[[], Held], show: Show) -> str:
    """Fetch the variant that is meant. Raises `AgentError`."""
    try:
        reference = await _chosen(preparation, spec, held)
        show(reference, None)
        return str((await preparation.bring(reference, lambda progress: show(reference, progress))).path)
    except PreparationError as error:
        raise _told(error.diagnosis) from None


async def stream(bring: Bring, artifacts: Artifacts) -> AsyncIterator[Pulling]:
    """How far it is, then the artifact. Closing this ends the pull, if nobody else wants it."""
    latest: Pulling | None = None
    moved = asyncio.Event()

    def show(reference: str, progress: Progress | None) -> None:
        nonlocal latest
        latest = Pulling(reference, progress)
        moved.set()

    task = asyncio.create_task(bring(show))
    task.add_done_callback(lambda _: moved.set())
    try:
        while not task.done():
            await moved.wait()
            moved.clear()
            if latest is not None:
                yield latest
                await asyncio.wait([task], timeout=_PERIOD)
        path = task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert latest is not None  # it told its reference
    found = next((one for one in (await artifacts.all()).artifacts if one.path == path), None)
    if found is None or found.state is ArtifactState.EXTERNAL:
        yield Pulling(latest.reference)  # a file outside of the cache: it is where it was
    else:
        yield Pulling(latest.reference, artifact=found)


async def _chosen(preparation: Preparation, spec: DeploymentSpec, held: Callable[[], Held]) -> str:
    """The variant that a deployment would get, where the reference names several. Raises `AgentError`."""
    scheme, _, rest = spec.model.partition(":")
    wanted = HubReference.parse(rest) if scheme == "hf" else None
    if wanted is None or wanted.variant:
        return spec.model
    try:
        question = await preparation.question(spec, 0, held)
    except PreparationError:
        return spec.model  # what the catalog does not know is asked of the source itself
    sources = [option.source for option in question.options]
    if len(sources) == 1:
        return sources[0]
    answer = await asyncio.to_thread(plan, question)
    if isinstance(answer, Refusal):
        hint = f"name the one that you want: {', '.join(sources)}"
        message = f"{spec.model} has {len(sources)} variants, and none suits this node: {answer.diagnosis.message}"
        raise FailedPrecondition(message, hint=hint)
    return answer.variant.source


def _told(diagnosis: Diagnosis) -> AgentError:
    kind = NotFound if diagnosis.code is DiagnosisCode.MODEL_MISSING else FailedPrecondition
    evidence = f" ({diagnosis.evidence})" if diagnosis.evidence else ""
    return kind(f"{diagnosis.code}: {diagnosis.message}{evidence}", hint=diagnosis.hint)
