"""What the first deployment after a start would wait for, done before it is asked for: a third of a second.

To be READY soon, the agent imports what only deployments need when there is one, and the first plan asks each engine's
executable about itself. So, once the start is over, a model that does not exist is planned, and what comes after a plan
is imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Final

import structlog

from agent.engines import ENGINES
from agent.errors import AgentError
from agent.supervision.preparation import Held, Preparation, PreparationError

log = structlog.get_logger(__name__)

#: After the start (seconds): whoever waited for that comes first.
DELAY: Final = 1.0
#: Between two modules (seconds): calls and probes are answered meanwhile.
PAUSE: Final = 0.005

#: Of the way from a request to a ready engine, what nothing else here imports; parts before what is made of them.
_MODULES: Final = (
    "agent.models.profile", "agent.planning.memory.base", "agent.planning.memory.weights", "agent.planning.request",
    "agent.planning.planner", "agent.supervision.changes", "agent.artifacts.sources", "agent.supervision.hub",
    "agent.supervision.actor", "agent.supervision.watch",
)  # fmt: skip


async def rehearse(preparation: Preparation, held: Callable[[], Held], alone: Callable[[], bool]) -> None:
    """Changes nothing, and raises nothing: a deployment says better what is wrong. The engines are asked only while the
    agent is `alone`, without deployments: to list devices takes memory of each for a moment, which may be all in use.
    """
    await asyncio.sleep(DELAY)
    try:
        await _load()
        if alone():
            await _plan(preparation, held)
    except (PreparationError, AgentError) as error:
        log.info("rehearsal ended early", error=str(error))
    except Exception:
        log.exception("rehearsal failed")


async def _load() -> None:
    for name in _MODULES:
        import_module(name)
        await asyncio.sleep(PAUSE)
    for engine in ENGINES:
        ENGINES[engine]
        await asyncio.sleep(PAUSE)


async def _plan(preparation: Preparation, held: Callable[[], Held]) -> None:
    from agent.models.profile import ModelProfile  # noqa: PLC0415 - as above
    from agent.planning.plan import Plan  # noqa: PLC0415
    from agent.planning.planner import plan  # noqa: PLC0415
    from agent.planning.request import Option  # noqa: PLC0415
    from agent.spec import parse_spec  # noqa: PLC0415
    from agent.supervision.hub import Meaning  # noqa: PLC0415

    spec = parse_spec({"name": "rehearsal", "model": "file:/rehearsal.gguf"})
    profile = ModelProfile(
        path="/rehearsal.gguf", format="gguf", architecture="llama", name="rehearsal", quantization="Q8_0",
        file_bytes=1 << 20, tensor_bytes=1 << 20, parameters=1 << 20, layers=2, embedding_length=64,
        feed_forward_length=128, heads=2, kv_heads=(2, 2), key_length=32, value_length=32, context_length=2048,
        vocabulary=256,
    )  # fmt: skip
    around = await preparation.surroundings(held)
    answer = plan(preparation.request(spec, 0, Meaning((Option(profile, spec.model),)), around))
    if isinstance(answer, Plan):
        answer.to_json()
    with suppress(PreparationError):  # there is no such file
        await preparation.question(spec, 0, held)
