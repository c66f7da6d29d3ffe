"""The decision for a deployment: what will run, within which limits, with how much memory, and why.

Frozen data. `Plan` is stored with each instance and shown by `agentctl plan` and `describe`; adapters turn
it into a command, supervision into probes and cgroup limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Reason:
    """Why `field` of the plan has its value: `code` is stable, `sentence` is for people."""

    field: str
    value: str
    code: str  # from-spec | from-policy | engine-default | model | computed | measured | assumed
    sentence: str


@dataclass(frozen=True, slots=True)
class MemoryTerm:
    """One term of a memory budget, in bytes; `source` names the formula or measurement, `uncertainty` is +/- bytes."""

    name: str
    bytes: int
    source: str
    uncertainty: int = 0
    formula: int | None = None  # what the formula says, where a measurement stands in its place


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What an instance may use of one pool: `host`, or a device by its id."""

    pool: str
    terms: tuple[MemoryTerm, ...]
    unified: bool = False  # a device without memory of its own: it counts against the host as well
    claimed: int | None = None  # what the engine takes as a whole; its cache is what its other terms leave of it
    free: int | None = None  # of a device, before the start: some engines' flags are shares of it. None: all of it

    @property
    def bytes(self) -> int:
        """The whole budget: what is claimed, or the sum of all terms and of their uncertainties."""
        if self.claimed is not None:
            return self.claimed
        return sum([term.bytes + term.uncertainty for term in self.terms])


@dataclass(frozen=True, slots=True)
class Variant:
    """One set of weight files of a model, found on this node."""

    source: str  # the reference, as in the spec
    path: str  # absolute path of the file that the engine opens
    format: str  # "gguf"
    quantization: str  # "Q4_1"
    bytes: int
    architecture: str
    digest: str = ""  # "sha256:..." where the source publishes one, or where it was computed


@dataclass(frozen=True, slots=True)
class Image:
    """The container image that the engine runs in."""

    repository: str  # with its registry
    tag: str
    digest: str = ""  # "sha256:..." that is pinned, later the one that was pulled
    architecture: str = ""
    bytes: int = 0  # compressed, about; 0: not known
    environment: Mapping[str, str] = field(default_factory=dict)  # that it needs on this node
    id: str = ""  # "sha256:..." of its content on this node, once it is here
    paths: tuple[str, ...] = ()  # of the weights, on this node: the container sees them at the same place

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits in force. Context is per sequence (tokens); 'gpu_memory_utilization' is None on a CPU node."""

    max_num_seqs: int
    max_model_len: int
    kv_cache_dtype: str
    max_num_batched_tokens: int
    threads: int
    gpu_memory_utilization: float | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that was not chosen, and the rule that it broke."""

    candidate: str
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Placement:
    """How the engine uses the plan's devices, in their order. Without devices everything is on the CPU."""

    accelerator: str = "cpu"  # by which it reaches them: "cuda", "rocm", "sycl", "vulkan", "metal"
    layers: tuple[int, ...] = ()  # on each device; the output counts as one; the CPU computes what is missing
    names: tuple[str, ...] = ()  # the engine's own ones, where it does not count the visible devices from 0
    environment: Mapping[str, str] = field(default_factory=dict)  # makes these devices visible, and no others
    tensor: int = 1  # ranks that share each layer; tensor * pipeline * data devices
    pipeline: int = 1  # stages of consecutive layers
    data: int = 1  # replicas behind one port
    experts: bool = False  # each rank has whole experts, instead of a slice of all of them


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the plan's cache holds. `assured`: also where every term is as large as it may be."""

    kv_bytes: int  # on all devices together
    kv_tokens: int  # of all sequences together
    requests: float  # of `max_model_len` tokens each, at the same time
    assured: bool = True
    doubt: str = ""  # what it depends on, where it is not assured


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before a start. Pure function of spec, profile, inventory, policy and reservations."""

    deployment: str
    generation: int
    model_name: str  # the name that clients send as "model"
    task: str
    engine: str
    engine_version: str
    binary: tuple[str, ...]  # argv prefix of the engine: ("/usr/bin/llama-server",); in a container, the image's
    runtime: str  # "process" or "docker"
    variant: Variant
    devices: tuple[str, ...]  # empty: CPU
    limits: Limits
    budgets: tuple[MemoryBudget, ...]  # of the host, then of each device
    extra_args: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    placement: Placement = field(default_factory=Placement)
    capacity: Capacity | None = None  # None: in plans of agents that did not count it
    image: Image | None = None  # of the runtime "docker"

    @property
    def host_bytes(self) -> int:
        """The budget of host memory, in bytes; what devices without memory of their own take of it included."""
        return sum(budget.bytes for budget in self.budgets if budget.pool == "host" or budget.unified)

    @property
    def device_bytes(self) -> Mapping[str, int]:
        """The budget of each device, in bytes, by its id."""
        return {budget.pool: budget.bytes for budget in self.budgets if budget.pool != "host"}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_json` is its inverse."""
        return asdict(self)

    def to_json(self) -> str:
        return _adapter().dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> Plan:
        """Raises `pydantic.ValidationError` (a `ValueError`) for anything that is not a plan."""
        return _adapter().validate_json(text)


@cache
def _adapter() -> TypeAdapter[Plan]:
    """Made when it is first used: importing pydantic and building it would double the start of `agentctl status`."""
    from pydantic import TypeAdapter  # noqa: PLC0415

    return TypeAdapter(Plan)
