"""The node's configuration and policy, as the operator writes them.

Every field has its meaning, unit and the reason of its default in its description; the reference page, the JSON
schema and the example are made from them (`python -m agent.schemas`). Where the values come from, and in which order,
is said in `agent.config`. Directories, sockets and the node's name have defaults that depend on the scope and the
host, so a `NodeConfig` is made by `agent.config.load_config` only.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from agent.quantities import (
    GIB,
    KIB,
    MIB,
    AbsolutePath,
    Address,
    Argument,
    Bytes,
    EngineName,
    FileMode,
    Fraction,
    HostName,
    NonEmptyLine,
    Port,
    Seconds,
    Word,
)
from agent.strict import Strict, broken, plain

Scope = Literal["user", "system"]

#: The longest path of a Unix socket in bytes: Linux's sun_path has 108, with a final NUL.
MAX_SOCKET_PATH = 107


class Directories(Strict):
    """Where the agent keeps things; it makes what is missing."""

    state: Annotated[AbsolutePath, Field(description="The store and the instances' records; must survive a reboot.")]
    runtime: Annotated[AbsolutePath, Field(description="Sockets; may be lost with a reboot.")]
    cache: Annotated[AbsolutePath, Field(description="What can be fetched again.")]
    logs: Annotated[AbsolutePath, Field(description="The engines' output.")]


class Socket(Strict):
    """A Unix socket; its permissions decide who may use it."""

    path: Annotated[AbsolutePath, Field(description="Where it is; at most 107 bytes, which is Linux's limit.")]
    owner: Annotated[
        NonEmptyLine | None, Field(description="User that it belongs to. Default: the agent's; changing it needs root.")
    ] = None
    group: Annotated[NonEmptyLine | None, Field(description="Group that it belongs to. Default: the agent's.")] = None
    mode: Annotated[FileMode, Field(description="Permission bits, as an octal string such as '0660'.")]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        length = len(str(self.path).encode())
        if length > MAX_SOCKET_PATH:
            rule = f"must have at most {MAX_SOCKET_PATH} bytes, Linux's limit for a socket (has {length})"
            raise broken(f"{rule}; write a shorter one, or a shorter directories.runtime", "path")
        return self


class Api(Strict):
    """The two sockets of the control API."""

    control: Annotated[Socket, Field(description="May change everything.")]
    readonly: Annotated[Socket, Field(description="May only look.")]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.control.path == self.readonly.path:
            raise broken("must differ from api.control.path", "readonly.path")
        return self


class PortRange(Strict):
    """TCP ports for engines whose spec says `auto`; a port that a spec names must lie in it as well."""

    first: Annotated[
        Port, Field(description="The first one. 8100: above the usual web servers, below ephemeral ports.")
    ] = 8100
    last: Annotated[Port, Field(description="The last one. 8199: one for each of 100 deployments.")] = 8199

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first > self.last:
            raise broken(f"must be at most policy.ports.last, which is {self.last} (got {self.first})", "first")
        return self


def _check_bound(default: float | None, maximum: float | None) -> None:
    if default is not None and maximum is not None and default > maximum:
        raise broken(f"must be at most max, which is {plain(maximum)} (got {plain(default)})", "default")


class CountBound(Strict):
    """Default and maximum of a limit that is a number."""

    default: Annotated[
        int | None, Field(ge=1, le=100_000_000, description="Where the spec says nothing. Default: the engine's.")
    ] = None
    max: Annotated[int | None, Field(ge=1, le=100_000_000, description="No spec gets more. Default: no maximum.")] = (
        None
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_bound(self.default, self.max)
        return self


class FractionBound(Strict):
    """Default and maximum of a limit that is a part of a whole."""

    default: Annotated[Fraction | None, Field(description="Where the spec says nothing. Default: the engine's.")] = None
    max: Annotated[Fraction | None, Field(description="No spec gets more. Default: no maximum.")] = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_bound(self.default, self.max)
        return self


class PolicyLimits(Strict):
    """Defaults and maxima of the limits of specs."""

    max_num_seqs: Annotated[CountBound, Field(description="Sequences at the same time.")] = Field(
        default_factory=CountBound
    )
    max_model_len: Annotated[CountBound, Field(description="Tokens of context of one sequence.")] = Field(
        default_factory=CountBound
    )
    gpu_memory_utilization: Annotated[FractionBound, Field(description="Part of a device's memory.")] = Field(
        default_factory=FractionBound
    )
    kv_cache_dtypes: Annotated[
        tuple[Word, ...] | None,
        Field(strict=False, description="The types that are allowed. Default: all of the engine."),
    ] = None


OnDrift = Literal["warn", "restart"]


class DeviceDrift(Strict):
    """What is done about an instance that leaves its plan: warn (a condition and an event), or restart as well."""

    over_budget: Annotated[
        OnDrift, Field(description="It uses more device memory than its budget. warn: it still serves.")
    ] = "warn"
    wrong_device: Annotated[
        OnDrift, Field(description="It runs on a device that its plan does not name. warn: it still serves.")
    ] = "warn"
    not_on_device: Annotated[
        OnDrift,
        Field(description="It is ready, but holds no memory of its devices: it fell back to the CPU. warn: it serves."),
    ] = "warn"


class Policy(Strict):
    """What deployments may ask of this node. A spec beyond it is refused; nothing is silently cut down."""

    engines: Annotated[
        tuple[EngineName, ...] | None, Field(strict=False, description="The engines that are allowed. Default: all.")
    ] = None
    model_sources: Annotated[
        tuple[Literal["file", "package"], ...],
        Field(
            strict=False, description="Schemes of model references that are allowed. All: both read local files only."
        ),
    ] = ("file", "package")
    model_directories: Annotated[
        tuple[AbsolutePath, ...] | None,
        Field(strict=False, description="Where files of `file:` references may lie. Default: anywhere."),
    ] = None
    extra_args: Annotated[
        tuple[Argument, ...],
        Field(
            strict=False,
            description="Flags that specs may give in extra_args, such as --no-mmap; '*' allows all that the engine's "
            "adapter does not refuse. None: a flag can read files and open ports.",
        ),
    ] = ()
    ports: Annotated[
        PortRange, Field(description="TCP ports for engines; a port that a spec names must lie in it as well.")
    ] = Field(default_factory=PortRange)
    bind: Annotated[
        Address, Field(description="Address on which engines listen. 127.0.0.1: engines have no authentication.")
    ] = "127.0.0.1"
    limits: Annotated[
        PolicyLimits,
        Field(
            description="Defaults and maxima of the limits of specs; a spec beyond a maximum is refused, not cut down."
        ),
    ] = Field(default_factory=PolicyLimits)
    device_drift: Annotated[
        DeviceDrift, Field(description="What is done about an instance that leaves the devices or budgets of its plan.")
    ] = Field(default_factory=DeviceDrift)
    host_memory_reserve_bytes: Annotated[
        int, Bytes(), Field(description="Host memory that no plan uses. 1GiB: the system and the agent keep working.")
    ] = GIB
    max_deployments: Annotated[
        int, Field(ge=1, le=10_000, description="Deployments on this node. 100: as many as there are ports.")
    ] = 100


class EngineConfig(Strict):
    """What the operator knows about an engine on this node."""

    binary: Annotated[
        tuple[Argument, ...] | None,
        Field(
            strict=False,
            min_length=1,
            description="Command that starts it, as a list: [/opt/llama.cpp/llama-server]. Default: found on PATH, "
            "then the embedded one.",
        ),
    ] = None


class LogPolicy(Strict):
    """How much of the engines' output is kept: attempts x files x max_bytes for a deployment at most."""

    max_bytes: Annotated[
        int,
        Bytes(minimum=64 * KIB),
        Field(description="A log file is rotated at this size. 10MiB: opens in any editor."),
    ] = 10 * MIB
    files: Annotated[int, Field(ge=1, le=100, description="Files kept for an attempt. 3: its last 20MiB at least.")] = 3
    attempts: Annotated[
        int, Field(ge=1, le=1000, description="Attempts kept for a deployment. 5: a whole crash loop.")
    ] = 5


class DaemonTuning(Strict):
    """The agent itself."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="What it logs. info: every decision, and nothing that repeats."),
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"],
        Field(description="auto: for people (console) on a terminal, otherwise json for programs."),
    ] = "auto"
    sample_seconds: Annotated[
        float,
        Seconds(0.5),
        Field(description="Time between two samples of memory and load. 5: cheap, and a leak shows in time."),
    ] = 5.0
    sweep_seconds: Annotated[
        float, Seconds(1), Field(description="Time between two searches for strays. 300: strays are rare.")
    ] = 300.0
    sweep_min_age_seconds: Annotated[
        float, Seconds(0), Field(description="Strays younger than this are left alone. 300: a launch may be under way.")
    ] = 300.0
    sweep_dry_run: Annotated[
        bool, Field(description="Report strays, but do not end them. false: they hold memory.")
    ] = False
    store_deadline_seconds: Annotated[
        float,
        Seconds(0.1),
        Field(description="Wait for the disk before a change is refused. 5: a disk that needs longer is sick."),
    ] = 5.0
    cgroups: Annotated[
        Literal["auto", "off"],
        Field(description="auto: memory, CPU and pids are limited by the kernel where the agent may write a cgroup."),
    ] = "auto"
    event_history: Annotated[
        int, Field(ge=100, le=1_000_000, description="Events kept in the store. 10000: months, in a few MiB.")
    ] = 10_000


class NodeConfig(Strict):
    """The configuration in force."""

    node_name: Annotated[HostName, Field(description="Name of this node. Default: the host's name.")]
    scope: Annotated[
        Scope,
        Field(
            description="For one user, or for the system. Decided by how agentd is started; no source may change it."
        ),
    ]
    directories: Annotated[Directories, Field(description="Where the agent keeps things; it makes what is missing.")]
    api: Annotated[
        Api, Field(description="The control API: two Unix sockets whose permissions decide who may use them.")
    ]
    policy: Annotated[
        Policy, Field(description="What deployments may ask of this node; a spec beyond it is refused.")
    ] = Field(default_factory=Policy)
    engines: Annotated[
        dict[EngineName, EngineConfig],
        Field(description="Engines by name, such as llama.cpp. Default: found as they are."),
    ] = Field(default_factory=dict)
    logs: Annotated[
        LogPolicy,
        Field(description="How much of the engines' output is kept: attempts x files x max_bytes for a deployment."),
    ] = Field(default_factory=LogPolicy)
    daemon: Annotated[DaemonTuning, Field(description="The agent itself.")] = Field(default_factory=DaemonTuning)
