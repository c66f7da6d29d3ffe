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
from agent.planning.ledger import MeasuredTerm
from agent.planning.plan import Limits, MemoryTerm, Placement, Plan
from agent.status import Diagnosis, ExitStatus, Granted

#: What decides which devices a process can see. A plan sets them, so a spec may not.
DEVICE_VARIABLES = frozenset(
    {
        "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR",
        "GGML_VK_VISIBLE_DEVICES",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can serve, as data that planning reads."""

    formats: frozenset[str]
    tasks: frozenset[str]
    accelerators: frozenset[str]  # "cpu", "cuda", "rocm", "sycl", "metal", "vulkan": of any of its builds
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
    gpu_memory_utilization: float
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class EngineDevice:
    """A device as an executable itself lists it."""

    accelerator: str  # "cuda", "vulkan" ...
    name: str  # as its flags take it: "CUDA0"
    description: str  # the name that its driver gives it: "NVIDIA H200"


@dataclass(frozen=True, slots=True)
class Located:
    """A native executable of the engine on this node."""

    argv: tuple[str, ...]
    version: str
    origin: str  # "config" | "path" | "embedded" | "assumed"
    accelerators: frozenset[str] = frozenset({"cpu"})  # what this very executable can use
    devices: tuple[EngineDevice, ...] = ()  # what it listed; () where it was not asked


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
    executable: str  # its usual name: what a plan for hardware that is not here shows
    capabilities: Capabilities
    defaults: EngineDefaults

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        """Find the native executable: configured path, then PATH, then the embedded one. May touch the disk and
        ask it once for its version and its devices (10 s each at most); raises nothing; None when there is none."""

    def device_layers(self, profile: ModelProfile) -> int:
        """How many layers can lie on devices, the output included: as `Placement.layers` counts them. Pure."""

    def memory_terms(
        self, profile: ModelProfile, limits: Limits, task: str, placement: Placement
    ) -> tuple[tuple[MemoryTerm, ...], ...]:
        """What an instance needs of host memory, then of each device's memory, in the placement's order: weights,
        KV cache, compute buffers, process. Never less for longer or more sequences. Pure."""

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

    def parse_memory(self, log: str, plan: Plan) -> tuple[MeasuredTerm, ...]:
        """What the engine itself reports of its memory in the log of a start that became ready: of the host and of
        each device, by the names of `memory_terms`. () where it says too little, or did not do what `plan` says. Pure.
        """

    def diagnose(self, exit: ExitStatus, log_tail: str) -> Diagnosis:
        """Map an unexpected end to the taxonomy by exit status and the last 64 KiB of log. Never raises. Pure."""

    def secret_flags(self) -> Mapping[str, str]:
        """Names of `secrets` that the engine understands -> the environment variable that carries them."""
