"""What is observed: phases, diagnoses, conditions, events and the snapshots that status is made of.

Plain frozen data without behaviour, shared by supervision (which writes it), the store (which keeps it) and
the API (which maps it to proto). Times are Unix seconds (float, wall clock) because people and other
machines read them; everything that *decides* on time uses the monotonic clock instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum

from agent.frozen import frozen


class Phase(StrEnum):
    """Where a deployment stands. Values are stored and sent: never rename one."""

    PENDING = "pending"  # accepted; nothing has been tried for this generation yet
    PLANNING = "planning"  # profile, memory budget and limits are being decided
    FETCHING = "fetching"  # artifacts are being brought and verified
    STARTING = "starting"  # intent is durable, the process is being created
    LOADING = "loading"  # the process runs; its startup probe has not passed yet
    READY = "ready"  # the engine answered its probes, recently
    UNREADY = "unready"  # it was ready; its readiness probe fails now
    DRAINING = "draining"  # no new work is expected; requests in flight may finish
    STOPPING = "stopping"  # TERM, then KILL; waits until every process is gone
    STUCK = "stuck"  # survived KILL; its memory and port stay reserved, and KILL is retried
    BACKOFF = "backoff"  # failed; waits before the next attempt
    FAILED = "failed"  # gave up, with a diagnosis; a new spec or an operator's restart lifts it
    STOPPED = "stopped"  # stopped by an operator; no process, no memory
    DELETED = "deleted"  # the last phase of a deleted deployment, seen only by watchers


class Desired(StrEnum):
    """What the operator wants of a deployment."""

    RUN = "run"
    STOP = "stop"
    DELETE = "delete"


class ProbeKind(StrEnum):
    STARTUP = "startup"
    READINESS = "readiness"
    LIVENESS = "liveness"
    INFERENCE = "inference"


class DiagnosisCode(StrEnum):
    """Why an instance failed: the taxonomy. Values are stored, sent and documented: never rename one."""

    # a retry may help
    CRASHED = "crashed"  # died by itself, cause unknown
    EXITED = "exited"  # exited with status 0 though nobody asked it to
    KILLED = "killed"  # SIGKILL from outside, not by the kernel's OOM killer
    HOST_OOM = "host_oom"  # the kernel killed it for host or cgroup memory
    DEVICE_OOM = "device_oom"  # out of device memory
    STARTUP_TIMEOUT = "startup_timeout"  # never passed its startup probe
    UNRESPONSIVE = "unresponsive"  # liveness probe failed
    INFERENCE_HANG = "inference_hang"  # health answers, generation does not
    LAUNCH_FAILED = "launch_failed"  # the operating system or the container engine refused to create it
    VANISHED = "vanished"  # it ended while the agent was away and left no exit status (reboot)
    OFF_BUDGET = "off_budget"  # it left its plan: more device memory, another device, or no device at all
    DEVICE_FAILED = "device_failed"  # a device that it runs on is lost, quarantined, or not given to its container
    SHARED_MEMORY = "shared_memory"  # /dev/shm is too small for what its processes share
    COMMUNICATION_FAILED = "communication_failed"  # its devices could not talk to each other (NCCL, RCCL)
    SOURCE_UNAVAILABLE = "source_unavailable"  # a hub or registry did not answer, or not in its protocol, or said later
    RUNTIME_UNAVAILABLE = "runtime_unavailable"  # the container engine does not run, does not answer, or refuses us
    DISK_FULL = "disk_full"  # no room for files: of the engine, of a pull, or of the container engine
    STORE_FAILED = "store_failed"  # state could not be made durable, so nothing was started
    AGENT_FAILED = "agent_failed"  # a fault of the agent itself, in its log
    # a retry cannot help
    BAD_FLAG = "bad_flag"  # the engine refused an argument
    BINARY_MISSING = "binary_missing"  # no executable for the engine on this node
    CPU_UNSUPPORTED = "cpu_unsupported"  # the binary needs instructions that this CPU lacks (SIGILL)
    MODEL_MISSING = "model_missing"  # the model's files are not where the source says
    MODEL_CORRUPT = "model_corrupt"  # truncated, garbage, or a digest that does not match
    MODEL_UNSUPPORTED = "model_unsupported"  # the engine does not know the architecture or format
    MODEL_GATED = "model_gated"  # its publisher gives it only to who asked, and the token has no such right
    IMAGE_MISSING = "image_missing"  # no such image in its registry, none that is known, or none here while offline
    IMAGE_CORRUPT = "image_corrupt"  # what the registry sends is not what the digest promises
    IMAGE_DENIED = "image_denied"  # the registry wants other credentials, or any
    DEVICE_UNSUPPORTED = "device_unsupported"  # the engine has no kernels for this device, or it cannot do the type
    DRIVER_UNSUPPORTED = "driver_unsupported"  # the driver is too old for this build, or its parts do not match
    TOOLKIT_MISSING = "toolkit_missing"  # the container toolkit, or a compiler that the engine wants, is not there
    DOES_NOT_FIT = "does_not_fit"  # needs more memory than is free
    CACHE_TOO_SMALL = "cache_too_small"  # the engine's cache would not hold one request of the longest length
    PORT_TAKEN = "port_taken"  # a stranger listens on the port
    SECRET_MISSING = "secret_missing"  # a secret reference cannot be resolved
    POLICY_DENIED = "policy_denied"  # node policy forbids it (it may have changed since admission)
    CRASH_LOOP = "crash_loop"  # the budget of failures is spent; `cause` is the last failure


#: Failures that no retry mends: straight to FAILED, no budget spent (reliability rules, "non-retryable").
FATAL: frozenset[DiagnosisCode] = frozenset(
    {
        DiagnosisCode.BAD_FLAG,
        DiagnosisCode.BINARY_MISSING,
        DiagnosisCode.CPU_UNSUPPORTED,
        DiagnosisCode.MODEL_MISSING,
        DiagnosisCode.MODEL_CORRUPT,
        DiagnosisCode.MODEL_UNSUPPORTED,
        DiagnosisCode.MODEL_GATED,
        DiagnosisCode.IMAGE_MISSING,
        DiagnosisCode.IMAGE_CORRUPT,
        DiagnosisCode.IMAGE_DENIED,
        DiagnosisCode.DEVICE_UNSUPPORTED,
        DiagnosisCode.DRIVER_UNSUPPORTED,
        DiagnosisCode.TOOLKIT_MISSING,
        DiagnosisCode.DOES_NOT_FIT,
        DiagnosisCode.CACHE_TOO_SMALL,
        DiagnosisCode.PORT_TAKEN,
        DiagnosisCode.SECRET_MISSING,
        DiagnosisCode.POLICY_DENIED,
        DiagnosisCode.CRASH_LOOP,
    }
)


@frozen
class Diagnosis:
    """Why an instance failed: one code, a sentence, the evidence (a log line, numbers) and what to do next."""

    code: DiagnosisCode
    message: str
    evidence: str = ""
    hint: str = ""

    @property
    def fatal(self) -> bool:
        """Whether trying again is useless."""
        return self.code in FATAL


@frozen
class ExitStatus:
    """How a process ended. `code` or `signal`, or neither where it could not be learned; `at` is Unix seconds."""

    code: int | None = None
    signal: int | None = None
    oom_killed: bool = False
    at: float | None = None

    def __str__(self) -> str:
        if self.oom_killed:
            return "killed by the kernel's OOM killer"
        if self.signal is not None:
            return f"signal {self.signal}"
        if self.code is not None:
            return f"exit status {self.code}"
        return "exit status unknown"


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "unknown"  # no probe has answered yet: never shown as ready


@frozen
class ProbeVerdict:
    """The last answer of one probe of one instance."""

    kind: ProbeKind
    verdict: Verdict
    at: float
    detail: str = ""
    failures: int = 0  # in a row


@frozen
class Progress:
    """How far a step is: `done` of `total` bytes (total 0: unknown), with a word for the step."""

    step: str
    done: int = 0
    total: int = 0


@frozen
class DeviceUse:
    """What an instance was last seen to hold on one device, against its plan. Bytes."""

    device: str
    planned: bool  # whether the plan names this device
    budget_bytes: int  # 0 where it is not planned
    used_bytes: int | None  # None: the driver does not tell


@frozen
class Measured:
    """What the engine last said of its work, by the names of `agent.engines.base.Metric`; what it does not offer is
    missing."""

    at: float
    values: Mapping[str, float]


@frozen
class InstanceStatus:
    """One run of an engine for a deployment."""

    id: str
    deployment: str
    generation: int
    attempt: int
    runtime: str
    live: bool  # some process of it exists, as far as was last observed
    pid: int | None = None
    port: int | None = None
    created_at: float = 0.0
    started_at: float | None = None
    ready_at: float | None = None
    ended_at: float | None = None
    exit: ExitStatus | None = None
    diagnosis: Diagnosis | None = None
    probes: tuple[ProbeVerdict, ...] = ()
    log_path: str = ""
    memory_bytes: int | None = None  # resident memory of all its processes, last sample
    enforcement: tuple[str, ...] = ()  # which limits the kernel enforces, and which it does not and why
    device_uses: tuple[DeviceUse, ...] = ()
    container: str = ""  # its id, where it runs in one
    image: str = ""  # repository and tag
    image_digest: str = ""  # as its registry had it
    measured: Measured | None = None


@frozen
class Granted:
    """What the engine says it really gives, read back after it became ready; None where it does not tell."""

    max_model_len: int | None = None  # tokens per sequence
    max_num_seqs: int | None = None
    model: str = ""
    kv_tokens: int | None = None  # tokens that its cache holds, of all sequences together


@frozen
class DeploymentStatus:
    """The observed state of a deployment, with the reason for it in a code and a sentence."""

    name: str
    uid: str
    generation: int  # of the spec
    observed_generation: int  # of the running (or last tried) instance; 0: none yet
    etag: str
    desired: Desired
    phase: Phase
    reason: str
    message: str
    since: float
    created_at: float
    updated_at: float
    spec_json: str
    plan_json: str = ""
    endpoint: str = ""  # http://127.0.0.1:PORT, once a port is assigned
    restarts: int = 0  # instances started after the first one, without operator's restarts and rolls
    next_attempt_at: float | None = None
    progress: Progress | None = None
    granted: Granted | None = None
    diagnosis: Diagnosis | None = None
    instance: InstanceStatus | None = None
    previous: InstanceStatus | None = None
    conditions: tuple[Condition, ...] = ()  # WithinDeviceBudget, OnPlannedDevices: set where devices are planned


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@frozen
class Event:
    """One line of the append-only history. `seq` is assigned by the store, increases, and is never reused."""

    reason: str  # stable CamelCase code, documented in docs/reference/events.md
    message: str
    severity: Severity = Severity.INFO
    deployment: str = ""
    instance: str = ""
    at: float = 0.0
    seq: int = 0


@frozen
class Condition:
    """A standing fact: `status` true is good, false is bad, None is not known."""

    type: str  # of the node: RuntimeReachable, StateHealthy, DevicesDetected, LimitsEnforced, StraysAbsent, ...
    status: bool | None
    reason: str
    message: str
    since: float


class DeviceCondition(StrEnum):
    """How a device is. Only a Healthy or Degraded one is given to a plan. Values are sent: never rename one."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"  # works, but slower or not for long: throttled, rows to be remapped
    QUARANTINED = "quarantined"  # failed in a way that returns, or by an operator's order; an operator lifts it
    LOST = "lost"  # was there and is not now
    UNKNOWN = "unknown"  # does not answer, or was not sampled lately


@frozen
class DeviceProcess:
    """A process that holds memory of a device; `instance` is its id if it is one of ours."""

    pid: int
    memory_bytes: int | None
    user: str = ""
    command: str = ""
    instance: str = ""


@frozen
class DeviceHold:
    """A device is reserved: for a live instance, or for an ended one whose memory was not seen to be back."""

    deployment: str
    instance: str
    bytes: int  # the budget, or what is still held
    ended: bool  # the instance has ended, and its memory is still waited for
    since: float
    message: str = ""


@frozen
class DeviceStatus:
    """One device as status shows it. None: not known."""

    id: str
    index: int
    vendor: str
    name: str
    condition: DeviceCondition
    reason: str
    message: str
    since: float
    memory_total: int
    memory_used: int | None = None
    memory_reserved: int = 0  # bytes, sum of the holds
    sampled_at: float | None = None
    utilization: float | None = None  # percent
    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    clock_mhz: int | None = None
    throttling: tuple[str, ...] = ()
    processes: tuple[DeviceProcess, ...] | None = None  # None: the driver does not tell
    holds: tuple[DeviceHold, ...] = ()
    detail_json: str = ""  # what does not change: `agent.hardware.inventory.Device` as JSON


@frozen
class Finding:
    """One line of the doctor's report. `remedy` says what to do; "" where nothing is to be done."""

    check: str  # stable name in kebab-case: "nvidia-driver", "disk-space"
    level: FindingLevel
    message: str
    remedy: str = ""


class FindingLevel(StrEnum):
    OK = "ok"
    WARNING = "warning"  # works, but worse than it could
    ERROR = "error"  # something that was asked for cannot work
    UNKNOWN = "unknown"  # could not be looked at; the message says why
    NOTE = "note"  # a fact worth having in a report


@frozen
class NodeStatus:
    """The node as `GetNode` shows it: inventory, policy in force, conditions, versions."""

    name: str
    uid: str
    version: str
    started_at: float
    scope: str  # "user" or "system"
    inventory_json: str
    policy_json: str
    conditions: tuple[Condition, ...] = ()
    memory_total: int = 0  # bytes of host memory that this agent may use (cgroup limit respected)
    memory_available: int = 0
    memory_reserved: int = 0  # bytes, sum of the budgets of live and planned instances
    devices: tuple[DeviceStatus, ...] = ()
    deployments: int = 0
    ready: int = 0


@frozen
class Snapshot:
    """All that status shows at one instant. `revision` increases with every change in this daemon's life."""

    revision: int
    node: NodeStatus
    deployments: tuple[DeploymentStatus, ...] = field(default_factory=tuple)
