"""The node's configuration and policy, as the operator writes them.

Every field has its meaning, unit and the reason of its default in its description; the reference page, the JSON
schema and the example are made from them (`python -m agent.schemas`). Where the values come from, and in which order,
is said in `agent.config`. Directories, sockets and the node's name have defaults that depend on the scope and the
host, so a `NodeConfig` is made by `agent.config.load_config` only.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from agent.quantities import (
    GIB,
    KIB,
    MIB,
    REGISTRY,
    AbsolutePath,
    Address,
    Argument,
    Bytes,
    Endpoint,
    EngineName,
    FileMode,
    Fraction,
    HostName,
    NonEmptyLine,
    Port,
    RepositoryPrefix,
    Seconds,
    VariableName,
    Word,
)
from agent.references import ModelReference
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
ModelVariants = Literal["named", "maker", "known", "any"]


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
    runtimes: Annotated[
        tuple[Literal["process", "docker"], ...] | None,
        Field(
            strict=False,
            description="How engines may be run: process (natively), docker (in containers, also podman's). Default: "
            "both.",
        ),
    ] = None
    model_sources: Annotated[
        tuple[Literal["file", "package", "hf", "https", "http", "s3", "gs", "oci", "ollama", "ms", "gateway"], ...],
        Field(
            strict=False,
            description="Schemes of model references that are allowed. file and package read local files, hf fetches "
            "from the hub that fetch.endpoint names, gateway forwards to other deployments. Left out are https, http "
            "and oci, which reach any host, s3 and gs, which read with the agent's own credentials, and ollama and ms: "
            "one hub is enough for most.",
        ),
    ] = ("file", "package", "hf", "gateway")
    model_organisations: Annotated[
        tuple[Word, ...] | None,
        Field(
            strict=False,
            description="Owners of models that are allowed, such as [Qwen, unsloth]: of hf, ms, oci (the path's first "
            "part) and ollama (library, where none is named). Default: all.",
        ),
    ] = None
    model_variants: Annotated[
        ModelVariants,
        Field(
            description="Whose quantized variants may be chosen for a model that the catalog does not know. named: "
            "only what the reference names; maker: those of the model's publisher too; known: also those of vendors "
            "and of publishers whose repositories the catalog lists; any: anybody's. known: their files are in wide "
            "use."
        ),
    ] = "known"
    pickle: Annotated[
        bool,
        Field(
            description="Fetch weights that are pickle files (.bin, .pt) where a model has no others. false: who loads "
            "such a file runs the code in it."
        ),
    ] = False
    trust_remote_code: Annotated[
        tuple[ModelReference, ...],
        Field(
            strict=False,
            description="Models whose own Python files may run, such as [org/name, file:/models/name]; with @revision "
            "only those of that commit. A spec asks for it with --trust-remote-code in extra_args. None: such files do "
            "what they like on this host.",
        ),
    ] = ()
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


class CatalogConfig(Strict):
    """What the agent knows of models without asking anybody."""

    models: Annotated[
        AbsolutePath,
        Field(
            description="The operator's own entries, in the form of docs/reference/catalog.md; it need not exist. "
            "Default: catalog/models.yaml in the configuration directory."
        ),
    ]
    engines: Annotated[
        AbsolutePath,
        Field(
            description="The operator's own engine images, in the form of docs/reference/images.md; it need not exist. "
            "Default: catalog/engines.yaml in the configuration directory."
        ),
    ]


class FetchConfig(Strict):
    """How weights are fetched, and from where."""

    endpoint: Annotated[
        Endpoint | None,
        Field(description="Address of the hub, or of a mirror. Default: HF_ENDPOINT, then https://huggingface.co."),
    ] = None
    token_file: Annotated[
        AbsolutePath | None,
        Field(description="File with the hub's token, readable by the agent; read at each pull. Default: token_env."),
    ] = None
    token_env: Annotated[
        VariableName,
        Field(description="Variable of the agent's environment with the hub's token. It need not exist: many models "
              "are public."),
    ] = "HF_TOKEN"  # fmt: skip
    offline: Annotated[
        bool | None,
        Field(description="Fetch nothing, use what is in the cache. Default: whether HF_HUB_OFFLINE is set."),
    ] = None
    s3_endpoint: Annotated[
        Endpoint | None,
        Field(description="Address of a server that speaks S3, such as MinIO. Default: AWS_ENDPOINT_URL_S3, then "
              "Amazon's."),
    ] = None  # fmt: skip
    s3_region: Annotated[
        Word | None, Field(description="Region of the buckets. Default: AWS_DEFAULT_REGION, then us-east-1.")
    ] = None
    s3_credentials_file: Annotated[
        AbsolutePath | None,
        Field(description="File in the form of ~/.aws/credentials, readable by the agent; read at each pull. Default: "
              "what botocore finds in the agent's environment; without any, only public buckets."),
    ] = None  # fmt: skip
    gs_endpoint: Annotated[
        Endpoint | None, Field(description="Address of Cloud Storage. Default: https://storage.googleapis.com.")
    ] = None
    gs_credentials_file: Annotated[
        AbsolutePath | None,
        Field(description="File with a Google service account's key, or other credentials; read at each pull. Default: "
              "what google-auth finds in the agent's environment; without any, only public buckets."),
    ] = None  # fmt: skip
    ollama_endpoint: Annotated[
        Endpoint | None,
        Field(description="Address of Ollama's registry, or of a mirror. Default: https://registry.ollama.ai."),
    ] = None
    ms_endpoint: Annotated[
        Endpoint | None, Field(description="Address of ModelScope. Default: https://modelscope.cn.")
    ] = None
    ms_token_file: Annotated[
        AbsolutePath | None,
        Field(description="File with ModelScope's token, readable by the agent; read at each pull. Default: none."),
    ] = None
    connections: Annotated[
        int,
        Field(ge=1, le=64, description="Connections of a pull. 4: one rarely fills a fast network; more annoy hubs."),
    ] = 4
    bytes_per_second: Annotated[
        int, Bytes(), Field(description="Bandwidth of all pulls together, such as 100MB. 0: as fast as it goes.")
    ] = 0
    stall_seconds: Annotated[
        float,
        Seconds(1),
        Field(description="A pull ends when nothing came for so long. 60: most outages are shorter."),
    ] = 60.0
    disk_reserve_bytes: Annotated[
        int,
        Bytes(),
        Field(description="Free space that pulls leave on the cache's disk. 1GiB: the system and engines write too."),
    ] = GIB


def _mirrors(value: dict[str, str]) -> dict[str, str]:
    for registry, prefix in value.items():
        if registry != "*" and not re.fullmatch(REGISTRY, registry):
            raise broken("must be a registry such as docker.io, or '*' for all others", registry)
        if not re.fullmatch(f"{REGISTRY}(/[a-z0-9._-]+)*", prefix):
            raise broken("must be a registry and perhaps a path, such as mirror.example.com/hub", registry)
    return value


class ImagesConfig(Strict):
    """How engine images are pulled, by the container engine of this host."""

    repositories: Annotated[
        tuple[RepositoryPrefix, ...] | None,
        Field(
            strict=False,
            description="Repositories that are allowed, each with all below it, such as [docker.io/vllm]; by the names "
            "that catalogs use, whatever the mirror. Default: all.",
        ),
    ] = None
    require_digest: Annotated[
        bool,
        Field(description="Refuse images that catalogs do not pin to a digest. false: those that ship are not pinned."),
    ] = False
    mirrors: Annotated[
        dict[str, str],
        AfterValidator(_mirrors),
        Field(
            description="Where a registry's images are pulled from instead: {docker.io: mirror.example.com/hub}. Below "
            "that of '*' they keep their registry's name. Default: none."
        ),
    ] = Field(default_factory=dict)
    credentials: Annotated[
        AbsolutePath | None,
        Field(
            description="File with the registries' credentials, in the form of ~/.docker/config.json, readable by the "
            "agent; read at each pull. Default: none."
        ),
    ] = None
    offline: Annotated[bool, Field(description="Pull nothing, use what the container engine has.")] = False
    stall_seconds: Annotated[
        float,
        Seconds(1),
        Field(
            description="A try to pull ends when nothing moved for so long. 3m: the container engine's own retries "
            "take 75 s, and large layers are unpacked in silence for a while."
        ),
    ] = 180.0
    answer_seconds: Annotated[
        float,
        Seconds(1),
        Field(description="Wait for an answer of the container engine or, through it, of a registry. 60: a busy one "
              "is slow."),
    ] = 60.0  # fmt: skip
    tries: Annotated[
        int,
        Field(ge=1, le=100, description="Tries in a row that bring nothing, until the pull fails. 5: half a minute."),
    ] = 5
    retry_seconds: Annotated[
        float,
        Seconds(0.01),
        Field(description="Pause before the second try; each one after it is twice as long, to a minute at most. 2: "
              "many faults are gone by then."),
    ] = 2.0  # fmt: skip
    disk_reserve_bytes: Annotated[
        int,
        Bytes(),
        Field(
            description="Free space that pulls leave on the container engine's disk. 2GiB: containers write there too."
        ),
    ] = 2 * GIB


class ContainersConfig(Strict):
    """The container engine that runs engines' images: dockerd, or podman's service of the same API."""

    socket: Annotated[
        AbsolutePath | None,
        Field(
            description="Its Unix socket. Default: the one that DOCKER_HOST names, then /var/run/docker.sock, then "
            "podman's, the system's before the user's own; the first that is there."
        ),
    ] = None


class ArtifactsConfig(Strict):
    """How long what was fetched stays in the cache. What is in use, desired by a deployment or pinned always does."""

    disk_high: Annotated[
        Fraction,
        Field(
            description="Part of the cache's file system in use, by whatever, from which on what nobody wants is "
            "removed, least recently used first. 0.9: a fuller one grows slow, and the rest of the system needs room."
        ),
    ] = 0.9
    disk_low: Annotated[
        Fraction,
        Field(description="Part in use down to which it is. 0.8: room for a large model, without fetching it again "
              "soon."),
    ] = 0.8  # fmt: skip
    min_age_seconds: Annotated[
        float,
        Seconds(0),
        Field(description="What was fetched or used within this time stays. 1h: it may be wanted again at once."),
    ] = 3600.0
    partial_age_seconds: Annotated[
        float,
        Seconds(0),
        Field(
            description="Parts of pulls that nobody goes on with are removed after this time, however much room there "
            "is. 7d: a pull can rest over a weekend."
        ),
    ] = 7 * 86_400.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.disk_low > self.disk_high:
            rule = f"must be at most artifacts.disk_high, which is {plain(self.disk_high)} (got {plain(self.disk_low)})"
            raise broken(rule, "disk_low")
        return self


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
    catalog: Annotated[CatalogConfig, Field(description="What the agent knows of models without asking anybody.")]
    fetch: Annotated[FetchConfig, Field(description="How weights are fetched, and from where.")] = Field(
        default_factory=FetchConfig
    )
    images: Annotated[
        ImagesConfig, Field(description="How engine images are pulled, by the container engine of this host.")
    ] = Field(default_factory=ImagesConfig)
    containers: Annotated[ContainersConfig, Field(description="The container engine that runs engines' images.")] = (
        Field(default_factory=ContainersConfig)
    )
    artifacts: Annotated[
        ArtifactsConfig,
        Field(description="How long what was fetched stays. What is in use, desired or pinned always does."),
    ] = Field(default_factory=ArtifactsConfig)
    logs: Annotated[
        LogPolicy,
        Field(description="How much of the engines' output is kept: attempts x files x max_bytes for a deployment."),
    ] = Field(default_factory=LogPolicy)
    daemon: Annotated[DaemonTuning, Field(description="The agent itself.")] = Field(default_factory=DaemonTuning)
