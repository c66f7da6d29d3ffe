"""Resource names (AIP-122): how they are written and read. Deployments and devices may be given by their bare ids."""

from __future__ import annotations

import re

from agent.errors import FieldViolation, InvalidArgument

NODE = "node"
MAX_REFERENCE = 4096  # characters of a model's reference, as in a spec

_LABEL = "([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)"  # RFC 1123
_ID = "([A-Za-z0-9._-]{1,128})"
_DEPLOYMENT = re.compile(f"(?:deployments/)?{_LABEL}")
_INSTANCE = re.compile(f"deployments/{_LABEL}/instances/{_ID}")
_INSTANCE_ID = re.compile(_ID)
_DEVICE = re.compile("(?:devices/)?([A-Za-z0-9:._-]{1,128})")  # a UUID, or "amd-0000:c1:00.0"


def deployment_name(deployment: str) -> str:
    """The resource name of a deployment; empty for none."""
    return f"deployments/{deployment}" if deployment else ""


def instance_name(deployment: str, instance: str) -> str:
    return f"deployments/{deployment}/instances/{instance}"


def device_name(device: str) -> str:
    return f"devices/{device}"


def event_name(seq: int) -> str:
    return f"events/{seq}"


def measurement_name(measurement: str) -> str:
    return f"measurements/{measurement}"


def model_name(model: str) -> str:
    """Of a model of the catalog, whose id has two parts: `models/Qwen/Qwen3-8B`."""
    return f"models/{model}"


def artifact_name(artifact: str) -> str:
    return f"artifacts/{artifact}"


def parse_deployment(text: str, field: str) -> str:
    """The id in `deployments/{id}`. Raises InvalidArgument for `field`."""
    if match := _DEPLOYMENT.fullmatch(text):
        return match[1]
    rule = "must be {id} or deployments/{id}; an id has 1 to 63 of a-z, 0-9 and '-', and no '-' at its ends"
    raise _invalid(field, text, rule)


def parse_optional_deployment(text: str, field: str) -> str:
    """The id, or "" for all deployments. Raises InvalidArgument for `field`."""
    return parse_deployment(text, field) if text else ""


def parse_instance(text: str, field: str) -> tuple[str, str]:
    """Deployment and id in `deployments/{deployment}/instances/{id}`. Raises InvalidArgument for `field`."""
    if match := _INSTANCE.fullmatch(text):
        return match[1], match[2]
    raise _invalid(field, text, "must be deployments/{deployment}/instances/{id}")


def parse_optional_instance(text: str, deployment: str, field: str) -> str:
    """The id in an instance's name or bare id, or "" for the newest. Raises InvalidArgument for `field`."""
    if not text or _INSTANCE_ID.fullmatch(text):
        return text
    owner, instance = parse_instance(text, field)
    if owner != deployment:
        raise _invalid(field, text, f"must be an instance of deployments/{deployment}")
    return instance


def parse_device(text: str, field: str) -> str:
    """The id in `devices/{id}`. Raises InvalidArgument for `field`."""
    if match := _DEVICE.fullmatch(text):
        return match[1]
    raise _invalid(field, text, "must be devices/{id} or {id}, as ListDevices names it")


def parse_artifact(text: str, field: str) -> str:
    """The id in `artifacts/{id}`, or a reference as it is. Raises InvalidArgument for `field`."""
    wanted = text.removeprefix("artifacts/")
    if wanted and len(wanted) <= MAX_REFERENCE and wanted.isprintable():
        return wanted
    raise _invalid(field, text, "must be artifacts/{id} or {id}, as ListArtifacts names it, or the reference of one")


def _invalid(field: str, text: str, rule: str) -> InvalidArgument:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return InvalidArgument(f"{field} {shown!r} is not a valid name", violations=(FieldViolation(field, rule),))
