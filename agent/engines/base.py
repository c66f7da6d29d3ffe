"""What an engine adapter must say, in one place, so that nothing outside `engines/` knows an engine by name.

Adding an engine is adding one file with one class that satisfies `Engine`, and naming it in
`agent/engines/__init__.py`. Adapters do no I/O except `locate`; they describe, others act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from agent.errors import FieldViolation
from agent.status import Diagnosis, ExitStatus, Granted

if TYPE_CHECKING:  # the daemon's start needs only what is below
    from agent.engines.images import ImageChoice
    from agent.models.profile import ModelProfile
    from agent.planning.ledger import MeasuredTerm
    from agent.planning.memory.base import Card, Estimate
    from agent.planning.plan import Limits, MemoryTerm, Placement, Plan

#: What decides which devices a process can see. A plan sets them, so a spec may not.
DEVICE_VARIABLES = frozenset(
    {
        "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR",
        "GGML_VK_VISIBLE_DEVICES",
    }
)  # fmt: skip


class Hardware(StrEnum):
    """What decides between engines: the largest device that may be used."""

    CPU = "a CPU"
    APPLE = "Apple silicon"
    NVIDIA = "NVIDIA cards"
    NVIDIA_SMALL = "small NVIDIA cards"
    NVIDIA_OLD = "NVIDIA cards before Turing"
    AMD = "AMD cards"
    AMD_SMALL = "small AMD cards"
    INTEL = "Intel cards"


class Spread(StrEnum):
    """How an engine uses devices, and with that how its memory is planned."""

    LAYERS = "layers"  # whole layers on each device, the rest on the CPU; a cache of the size that was asked for
    RANKS = "ranks"  # tensor- and pipeline-parallel ranks; it takes a share of each device, what is left of it is cache


@dataclass(frozen=True, slots=True)
class Support:
    """Where an engine runs a quantization. Compute capabilities are NVIDIA's: (8, 9) is Ada."""

    accelerators: frozenset[str]
    least: tuple[int, int] = (0, 0)  # the lowest compute capability that runs it at all
    below: tuple[int, int] = (1000, 0)  # capabilities from here on do not run it (INT8 on Blackwell)
    native: tuple[int, int] = (0, 0)  # from here on it computes in the stored type; below, weights are unpacked first
    targets: tuple[str, ...] = ()  # AMD's architectures that run it, by the beginnings of their names; (): all


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can serve, as data that planning reads."""

    formats: frozenset[str]
    tasks: frozenset[str]
    accelerators: frozenset[str]  # "cpu", "cuda", "rocm", "sycl", "metal", "vulkan": of any of its builds
    kv_cache_dtypes: Mapping[str, float]  # name -> bytes per element
    split: bool = True  # it reads a GGUF that is split into several files
    context_extending_flags: frozenset[str] = frozenset()  # with one of these, more than the trained context is meant
    #: RANKS: with one of these, something takes memory of the engine's share that no plan counts: its cache is smaller.
    sharing_flags: frozenset[str] = frozenset()
    pooling_flags: frozenset[str] = frozenset()  # with one of these, any model makes embeddings or scores
    spread: Spread = Spread.LAYERS
    #: By `ModelProfile.quantization` ("bf16", "fp8-block", "awq"; docs/reference/models.md lists them), or its method
    #: (`quantization_config.method`). None: all that its formats hold (GGUF).
    quantizations: Mapping[str, Support] | None = None
    most_devices: int = 1024  # of one instance
    offload: bool = True  # LAYERS: some layers may stay on the CPU
    pipeline: bool = False  # RANKS: stages of layers as well as slices of them
    data: bool = False  # RANKS: replicas behind one port
    experts: bool = False  # RANKS: whole experts on each rank instead of slices
    #: Its place among engines, on hardware (`Hardware`) and for an aim ("throughput"); the lowest comes first. Where it
    #: has none, it is for other hardware, and comes last. In tens, so that another engine finds a place between two.
    suits: Mapping[str, int] = field(default_factory=dict)
    native: bool = True  # it can be run without a container; `Engine.container` says how it runs in one


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
    """An executable of the engine for this node: a native one, or that of an image."""

    argv: tuple[str, ...]
    version: str  # of an image: its tag
    origin: str  # "config" | "path" | "embedded" | "assumed" | "image"
    accelerators: frozenset[str] = frozenset({"cpu"})  # what this very executable can use
    devices: tuple[EngineDevice, ...] = ()  # what it listed; () where it was not asked
    image: ImageChoice | None = None  # None: it runs natively
    lists: tuple[str, ...] = ()  # arguments with which it prints all of its options; (): it is not asked
    options: frozenset[str] | None = None  # the options that it printed, in all spellings; None: not known
    only: frozenset[str] | None = None  # the only devices, by id, that it has code for; None: it may have all


@dataclass(frozen=True, slots=True)
class Containerized:
    """How an engine runs in its image."""

    command: tuple[str, ...]  # what starts it there, in place of a native executable
    own_entrypoint: bool = False  # the command is what the image's own entry point gets; else it is all of it
    shm_bytes: int = 64 * 1024**2  # Docker's own default; its processes share what they hand to each other
    ulimits: Mapping[str, int] = field(default_factory=dict)  # -1: unlimited
    read_only_root: bool = False  # it writes nothing but /tmp and its caches
    any_user: bool = False  # it needs no user of the image's own
    caches: Mapping[str, str] = field(default_factory=dict)  # variables that say where it keeps what it compiles
    environment: Mapping[str, str] = field(default_factory=dict)  # of the container alone
    files: tuple[str, ...] = ()  # of this package, that its command names: seen at the same place
    #: From SIGTERM, which all of them take, to SIGKILL where somebody else says `docker stop`: what the engine itself
    #: gives its requests, or Docker's wait where it is longer. The agent has deadlines of its own.
    stop_seconds: int = 30


#: Where a container has the folder that its engine may write to, and finds again after a restart.
CACHE_FOLDER = "/cache"


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


class Metric(StrEnum):
    """One set of names for what engines measure."""

    RUNNING = "running"  # requests that are computed
    WAITING = "waiting"  # requests that wait for room
    CACHE_USAGE = "cache_usage"  # part of the KV cache that is in use, 0 to 1
    FIRST_TOKEN = "first_token_seconds"  # histogram: from request to first token
    INTER_TOKEN = "inter_token_seconds"  # histogram: between two tokens of a sequence
    PROMPT_TOKENS = "prompt_tokens"  # counter
    GENERATED_TOKENS = "generated_tokens"  # counter
    PREEMPTIONS = "preemptions"  # counter: sequences that lost their cache to others


class Engine(Protocol):
    """One kind of server software: what is common to all. An adapter is a `LayersEngine` or a `RanksEngine`, as its
    `capabilities.spread` says.
    """

    name: str
    executable: str  # its usual name: what a plan for hardware that is not here shows
    capabilities: Capabilities
    defaults: EngineDefaults
    metrics: Mapping[Metric, str]  # the engine's own Prometheus name of each; one that is missing is not offered

    @property
    def container(self) -> Containerized | None:
        """How it runs in its image; None: it is not run in one."""

    def locate(self, configured: Sequence[str] | None) -> Located | None:
        """Find the native executable: configured path, then PATH, then the embedded one. May touch the disk and
        ask it once for its version and its devices (10 s each at most); raises nothing; None when there is none."""

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
        """Whether this reply to the startup probe means "still loading" rather than "broken", or than "up"."""

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


class LayersEngine(Engine, Protocol):
    """An engine with `Spread.LAYERS`."""

    def device_layers(self, profile: ModelProfile) -> int:
        """How many layers can lie on devices, the output included: as `Placement.layers` counts them. Pure."""

    def memory_terms(
        self, profile: ModelProfile, limits: Limits, task: str, placement: Placement
    ) -> tuple[tuple[MemoryTerm, ...], ...]:
        """What an instance needs of host memory, then of each device's memory, in the placement's order: weights,
        KV cache, compute buffers, process. Never less for longer or more sequences. Pure."""


class RanksEngine(Engine, Protocol):
    """An engine with `Spread.RANKS`. Its share of each device is `limits.gpu_memory_utilization`; on the CPU, where
    there is none, its cache gets what it is told.
    """

    def batch_defaults(self, profile: ModelProfile, card: Card, task: str) -> tuple[int, int]:
        """What the engine itself takes on such a device: (max_num_batched_tokens, max_num_seqs). Pure."""

    def estimate(self, profile: ModelProfile, limits: Limits, task: str, placement: Placement, card: Card) -> Estimate:
        """What each device (or with accelerator "cpu" the host, as a card) will hold with `placement.tensor` and
        `placement.pipeline` ranks, and whether that fits; made by `agent.planning.memory`. Pure.
        """

    def host_terms(self, profile: ModelProfile, placement: Placement) -> tuple[MemoryTerm, ...]:
        """What its processes take of host memory besides what `estimate` counts. Pure."""


@dataclass(frozen=True, slots=True)
class BackEnd:
    """A deployment that a gateway forwards to."""

    deployment: str
    model: str  # as it calls it itself
    url: str  # http://127.0.0.1:8100
    task: str
    key: str = field(default="", repr=False)  # its API key; "": it takes none


class GatewayEngine(LayersEngine, Protocol):
    """An engine for models of the format "gateway": it loads nothing, and forwards to other deployments."""

    configuration_file: str  # in the instance's directory; read again whenever it is replaced

    def configuration(self, plan: Plan, back_ends: Sequence[BackEnd]) -> str:
        """What the file shall say, with the back ends in order of preference. Pure."""
