"""What an engine adapter must say, in one place, so that nothing outside `engines/` knows an engine by name.

Adding an engine is adding one file with one class that satisfies `Engine`, and naming it in
`agent/engines/__init__.py`. Adapters do no I/O except `locate`; they describe, others act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.errors import FieldViolation
from agent.models.profile import ModelProfile
from agent.planning.plan import Limits, MemoryTerm, Plan
from agent.status import Diagnosis, ExitStatus, Granted


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can serve, as data that planning reads."""

    formats: frozenset[str]
    tasks: frozenset[str]
    accelerators: frozenset[str]  # "cpu", "cuda", "rocm" ...
    runtimes: frozenset[str]
    kv_cache_dtypes: Mapping[str, float]  # name -> bytes per element
    context_extending_flags: frozenset[str] = frozenset()  # with one of these, more than the trained context is meant
    pooling_flags: frozenset[str] = frozenset()  # with one of these, any model makes embeddings or scores


@dataclass(frozen=True, slots=True)
class EngineDefaults:
    """What the adapter takes where neither spec nor policy says anything; each with its reason."""

    max_num_seqs: int
    max_model_len_cap: int  # tokens: the default is min(this, trained context)
    kv_cache_dtype: str
    max_num_batched_tokens: int
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Located:
    """A native executable of the engine on this node."""

    argv: tuple[str, ...]
    version: str
    origin: str  # "config" | "path" | "embedded"


@dataclass(frozen=True, slots=True)
class Command:
    """What to execute. Secrets are not in here: they are merged into the environment at launch."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request that a probe sends to the engine's own port."""

    method: str
    path: str
    body: str = ""  # JSON


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What came back: `status` 0 means that the connection was refused or reset."""

    status: int
    body: str


@dataclass(frozen=True, slots=True)
class Activity:
    """How busy the engine is; None where it does not say. `work` only grows: equal twice means idle between."""

    running: int | None
    waiting: int | None
    work: float | None


class Engine(Protocol):
    """One kind of server software."""

    name: str
    capabilities: Capabilities
    defaults: EngineDefaults

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        """Find the native executable: configured path, then PATH, then the embedded one. May touch the disk and
        run `--version` once (deadline 10 s); raises nothing; None when there is none."""

    def memory_terms(self, profile: ModelProfile, limits: Limits, task: str) -> tuple[MemoryTerm, ...]:
        """The host memory that an instance needs: weights, KV cache, compute buffers, process. Never less for
        longer or more sequences. Pure."""

    def check_extra_args(self, arguments: Sequence[str]) -> tuple[FieldViolation, ...]:
        """Refuse flags that the adapter owns (port, model, limits), that are dangerous or that do not exist.
        The path of a violation is `extra_args[i]`. Pure."""

    def check_variable(self, name: str) -> str:
        """Why this environment variable may not be set (it would go round `check_extra_args`); "" where it may."""

    def command(self, plan: Plan, host: str, port: int) -> Command:
        """The command line for a plan, every limit mapped to its true flag. Pure."""

    def startup_probe(self, plan: Plan) -> HttpRequest: ...

    def readiness_probe(self, plan: Plan) -> HttpRequest: ...

    def liveness_probe(self, plan: Plan) -> HttpRequest: ...

    def inference_probe(self, plan: Plan) -> HttpRequest:
        """One token (or one embedding) for real."""

    def loading(self, reply: HttpReply) -> bool:
        """Whether this reply to the startup probe means "still loading" rather than "broken"."""

    def activity_request(self, plan: Plan) -> HttpRequest: ...

    def parse_activity(self, body: str) -> Activity: ...

    def granted_requests(self, plan: Plan) -> tuple[HttpRequest, ...]:
        """What to ask, once ready, to learn the limits that were really granted."""

    def parse_granted(self, replies: Sequence[HttpReply]) -> Granted: ...

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        """Map an unexpected end to the taxonomy by exit status and the last 64 KiB of log. Never raises. Pure."""

    def secret_flags(self) -> Mapping[str, str]:
        """Names of `secrets` that the engine understands -> the environment variable that carries them."""
