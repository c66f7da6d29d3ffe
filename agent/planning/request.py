"""What a plan is made of, as frozen data: everything that planning looks at, so that it needs no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agent.engines.base import Engine, Located
from agent.hardware.inventory import Inventory
from agent.planning.ledger import Measurement
from agent.planning.plan import Rejected
from agent.settings import Policy
from agent.spec import DeploymentSpec
from agent.status import Diagnosis

if TYPE_CHECKING:
    from agent.engines.images import Catalog, ImageRules
    from agent.models.profile import ModelProfile


@dataclass(frozen=True, slots=True)
class DeviceState:
    """How one device is at the moment of planning. Bytes."""

    unavailable: str = ""  # why no plan may have it (quarantined, lost, held by an ended instance); "": it may
    used: int = 0  # as the driver says, by everybody; ours of this very deployment included
    reserved: int = 0  # budgets of other deployments on it
    resident: int = 0  # how much of those is in use already, and so in `used` too
    released: int = 0  # what this deployment's running instance gives back before the new one starts


IDLE = DeviceState()


@dataclass(frozen=True, slots=True)
class Option:
    """One variant that the model reference can mean: weights, and what they are."""

    profile: ModelProfile
    source: str  # the reference of exactly these weights: "file:/models/x.gguf", "hf:Qwen/Qwen3-8B-AWQ"
    digest: str = ""  # of the weights, where their source publishes one
    trust: str = ""  # who published them: "maker", "vendor", "community"; "": the reference names these very files


@dataclass(frozen=True, slots=True)
class Containers:
    """What runs containers on this node, and the images that there are."""

    catalog: Catalog
    rules: ImageRules
    engine: str  # for people: "docker 28.2"
    problem: str = ""  # why it runs none, as a sentence; "": it does
    no_gpus: str = ""  # why containers get none of NVIDIA's devices; "": they do


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """One question. Bytes are of host memory."""

    spec: DeploymentSpec
    generation: int
    options: tuple[Option, ...]  # at least one; what the reference names, or the published variants of a model
    inventory: Inventory  # its memory is the sample that the plan must fit into
    policy: Policy
    engines: Mapping[str, Engine]  # in order of preference
    located: Mapping[str, Located]  # those of them that have an executable here
    reserved_bytes: int = 0  # budgets of all other deployments
    resident_bytes: int = 0  # how much of those is in use already, so that `available` lacks it
    devices: Mapping[str, DeviceState] = field(default_factory=dict)  # by id; one that is missing is idle
    released_bytes: int = 0  # what this deployment's running instance gives back before the new one starts
    measurements: tuple[Measurement, ...] = ()  # of engines that ran before, here or elsewhere
    left_out: tuple[Rejected, ...] = ()  # variants of the model that are no options, each with the reason
    containers: Containers | None = None  # None: this node has no container engine

    @property
    def profile(self) -> ModelProfile:
        return self.options[0].profile

    @property
    def digest(self) -> str:
        return self.options[0].digest


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no plan."""

    diagnosis: Diagnosis
    rejected: tuple[Rejected, ...] = ()
    remedies: tuple[str, ...] = ()  # what would make it fit: each a sentence, and enough alone
    missing_bytes: int | None = None  # of memory, for the candidate that came closest


class RefusedError(Exception):
    """Carries a refusal out of the steps of planning; `plan` returns it."""

    def __init__(self, diagnosis: Diagnosis, rejected: tuple[Rejected, ...] = ()) -> None:
        super().__init__(diagnosis.message)
        self.refusal = Refusal(diagnosis, rejected)


#: More bytes than anything lacks: there is nothing to run on, so no number of bytes would help.
FAR = 1 << 62


class MisfitError(RefusedError):
    """One candidate does not fit; `missing` is how many bytes it lacks where it came closest, or `FAR`."""

    def __init__(self, diagnosis: Diagnosis, missing: int, rejected: tuple[Rejected, ...] = ()) -> None:
        super().__init__(diagnosis, rejected)
        self.refusal = replace(self.refusal, missing_bytes=missing if missing < FAR else None)
        self.missing = missing
