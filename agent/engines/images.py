"""The catalog of engine images, and which of them a node can run. Selection is pure, and explains itself.

People edit `configs/catalog/engines.yaml`; `python -m agent.engines.images` derives `images.json` from it, which ships
with the package. Nothing is read before somebody asks. Keys and rules: docs/reference/images.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from agent.documents import compact, exists, load_file
from agent.errors import InvalidArgument
from agent.planning.plan import Reason, Rejected
from agent.quantities import Argument, Bytes, EngineName, Matches, NonEmptyLine, VariableName
from agent.references import DIGEST, REPOSITORY, TAG_NAME, ImageReference, allowed
from agent.status import Diagnosis, DiagnosisCode
from agent.strict import Strict, broken, validate

_SHIPPED = Path(__file__).with_name("images.json")
_EDITED = Path("configs", "catalog", "engines.yaml")

Accelerator = Literal["cpu", "cuda", "rocm", "sycl", "vulkan"]
Architecture = Literal["amd64", "arm64"]
#: As the kernel names what registries call amd64 and arm64.
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
#: What CUDA's compatibility libraries run on, by the names that NVIDIA's driver gives devices.
_DATA_CENTRE = re.compile(
    r"\b(A2|A10G?|A16|A30|A40|A[18]00X?|B[123]\d\d|G[BH]\d{3}|H\d{2,3}|L2|L4|L20|L40[GS]?|P4|P40|P100|T4G?|V100S?)\b"
)
_WORKSTATION = re.compile(r"\b(GeForce|GTX|RTX|Quadro|TITAN)\b", re.IGNORECASE)

Version = Annotated[
    str,
    Matches(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}", "must be a version in quotes, such as '580' or '575.51'", "version"),
]


class Capability(Strict):
    """Compute capabilities that the image has code for: from `least` on, and below `below`."""

    least: Version
    below: Version | None = None


class OlderDriver(Strict):
    """A driver that is older than `driver`, and how the image runs on it nevertheless."""

    driver: Version
    below: Version | None = None  # from here on it does not
    data_centre: bool = False  # on data-centre devices only
    environment: dict[VariableName, Argument] = Field(default_factory=dict)
    note: NonEmptyLine


class Image(Strict):
    """One image, and the rules that a node must keep to run it."""

    repository: Annotated[
        str,
        Matches(REPOSITORY, "must be a registry and a path, such as docker.io/vllm/vllm-openai", "repository"),
    ]
    tag: Annotated[str, Matches(TAG_NAME, "must be a tag, such as v0.33.0", "tag")]
    digest: Annotated[str, Matches(DIGEST, "must be sha256: and 64 hexadecimal digits", "digest")] | None = None
    accelerators: Annotated[tuple[Accelerator, ...], Field(strict=False, min_length=1)]
    architectures: Annotated[tuple[Architecture, ...], Field(strict=False, min_length=1)]
    cuda: Version | None = None  # that it was built with
    driver: Version | None = None  # the oldest one with which it runs as it is
    older_drivers: Annotated[tuple[OlderDriver, ...], Field(strict=False)] = ()
    capability: Capability | None = None  # NVIDIA
    targets: Annotated[tuple[NonEmptyLine, ...], Field(strict=False)] = ()  # AMD: "gfx942"; (): not known
    command: Annotated[tuple[Argument, ...], Field(strict=False)] = ()  # what starts the engine in it; (): the usual
    bytes: Annotated[int, Bytes(1)] | None = None  # compressed, about
    note: NonEmptyLine | None = None
    sources: Annotated[tuple[NonEmptyLine, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _fits_its_accelerators(self) -> Self:
        if self.older_drivers and self.driver is None:
            raise broken("must be given where older_drivers is", "driver")
        if self.capability and "cuda" not in self.accelerators:
            raise broken("is NVIDIA's: accelerators must have cuda", "capability")
        if self.targets and "rocm" not in self.accelerators:
            raise broken("are AMD's: accelerators must have rocm", "targets")
        return self

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}"


class _File(Strict):
    engines: dict[EngineName, Annotated[tuple[Image, ...], Field(strict=False, min_length=1)]]


@dataclass(frozen=True, slots=True)
class Host:
    """What a node offers to an image: the devices that it would use, and what is common to them. "" is not known."""

    machine: str  # "x86_64", "aarch64"
    accelerator: str  # by which the engine would reach the devices; "cpu" without them
    driver: str = ""
    capabilities: tuple[str, ...] = ()  # "9.0"; NVIDIA
    targets: tuple[str, ...] = ()  # "gfx942"; AMD
    devices: tuple[str, ...] = ()  # names, as the driver says them


@dataclass(frozen=True, slots=True)
class ImageRules:
    """What the node's policy says of images."""

    repositories: tuple[str, ...] | None = None  # these and all below them; None: all
    require_digest: bool = False


@dataclass(frozen=True, slots=True)
class ImageChoice:
    """The image, why it is this one, and why the others are not."""

    image: ImageReference
    environment: Mapping[str, str] = field(default_factory=dict)  # that it needs on this node
    command: tuple[str, ...] = ()  # what starts the engine in it; (): the engine's usual one
    reasons: tuple[Reason, ...] = ()
    rejected: tuple[Rejected, ...] = ()


class NoImage(Exception):
    """None of the engine's images runs here; `rejected` says why of each."""

    def __init__(self, diagnosis: Diagnosis, rejected: tuple[Rejected, ...] = ()) -> None:
        super().__init__(diagnosis.message)
        self.diagnosis = diagnosis
        self.rejected = rejected


class Catalog:
    """Images by engine, in order of preference."""

    def __init__(self, file: _File) -> None:
        self.engines: Mapping[str, tuple[Image, ...]] = file.engines

    def choose(self, engine: str, host: Host, rules: ImageRules) -> ImageChoice:
        """The first image of the engine that runs on the host. Pure. Raises `NoImage`."""
        rejected: list[Rejected] = []
        for image in self.engines.get(engine, ()):
            refusal = next(_broken_rules(image, host, rules), None)
            if refusal is None:
                return _choice(image, host, tuple(rejected))
            rejected.append(Rejected(image.name, refusal.code, refusal.sentence))
        raise NoImage(_diagnosed(engine, host, rejected), tuple(rejected))

    def named(self, engine: str, name: str, host: Host, rules: ImageRules) -> ImageChoice:
        """The image that a spec names, if it may run here: by the catalog's rules where it is listed there, else by the
        policy's alone. Pure. Raises `NoImage`."""
        reference = ImageReference.parse(name)
        assert reference is not None, "the spec was checked"
        known = next((each for each in self.engines.get(engine, ()) if each.name == reference.name), None)
        image = known or Image.model_construct(
            repository=reference.repository, tag=reference.tag, accelerators=(host.accelerator,),
            architectures=(_architecture(host),),
        )  # fmt: skip
        image = image.model_copy(update={"digest": reference.digest or image.digest})
        refusal = next(_broken_rules(image, host, rules), None)
        if refusal is not None:
            message = f"the spec's image {name} cannot run on this node: {refusal.sentence}"
            code = _CODES.get(refusal.code, DiagnosisCode.IMAGE_MISSING)
            diagnosis = Diagnosis(code, message, hint="name another image, or leave it out")
            raise NoImage(diagnosis, (Rejected(image.name, refusal.code, refusal.sentence),))
        choice = _choice(image, host, ())
        because = Reason("image", name, "from-spec", "set in the spec" + ("" if known else "; no catalog knows it"))
        return replace(choice, reasons=(because, *choice.reasons[1:]))


@dataclass(frozen=True, slots=True)
class _Refusal:
    code: str
    sentence: str


def _broken_rules(image: Image, host: Host, rules: ImageRules) -> Iterator[_Refusal]:
    """The rules that are broken, those first that say most about the node."""
    if host.accelerator not in image.accelerators:
        yield _Refusal("accelerator", f"it is for {', '.join(image.accelerators)}, not for {host.accelerator}")
    if (architecture := _architecture(host)) not in image.architectures:
        yield _Refusal("architecture", f"it is built for {', '.join(image.architectures)}, not for {architecture}")
    if host.accelerator == "cuda":
        yield from _broken_by_nvidia(image, host)
    if host.accelerator == "rocm" and image.targets:
        for target in host.targets:
            if target not in image.targets:
                yield _Refusal("device", f"it has no code for {target} (it has for {', '.join(image.targets)})")
    if not allowed(image.repository, rules.repositories):
        listed = ", ".join(rules.repositories or ()) or "none"
        yield _Refusal("repository", f"images.repositories does not allow {image.repository} (allowed: {listed})")
    if rules.require_digest and not image.digest:
        yield _Refusal("digest", "its digest is not pinned, which images.require_digest asks for")


def _broken_by_nvidia(image: Image, host: Host) -> Iterator[_Refusal]:
    for capability in host.capabilities:
        if image.capability and _number(capability) < _number(image.capability.least):
            needed = f"compute capability {image.capability.least} or newer"
            yield _Refusal("device", f"it has no code for compute capability {capability}: it needs {needed}")
        elif image.capability and image.capability.below and _number(capability) >= _number(image.capability.below):
            yield _Refusal("device", f"it has no code for compute capability {capability}: it ends below "
                           f"{image.capability.below}")  # fmt: skip
    if image.driver and host.driver and not _as_it_is(image, host) and _older(image, host) is None:
        built = f"the CUDA {image.cuda} image" if image.cuda else "it"
        yield _Refusal("driver", f"driver {host.driver} cannot run {built}, which needs {_drivers(image)}")


def _drivers(image: Image) -> str:
    """The drivers with which an image runs, in words."""
    if least := [older.driver for older in image.older_drivers if older.below is None and not older.data_centre]:
        return f"{min(least, key=_number)} or newer"
    others = " or ".join(
        f"branch {older.driver}" if older.below else f"{older.driver} or newer" for older in image.older_drivers
    )
    return f"{image.driver} or newer" + (f", or {others} with data-centre devices" if others else "")


def _as_it_is(image: Image, host: Host) -> bool:
    return image.driver is None or not host.driver or _number(host.driver) >= _number(image.driver)


def _older(image: Image, host: Host) -> OlderDriver | None:
    """How the image runs on this driver, which is older than it wants."""
    for older in image.older_drivers:
        if _number(host.driver) < _number(older.driver):
            continue
        if older.below is not None and _number(host.driver) >= _number(older.below):
            continue
        if not older.data_centre or (host.devices and all(map(is_data_centre, host.devices))):
            return older
    return None


def is_data_centre(name: str) -> bool:
    """Whether a device is one that CUDA's compatibility libraries run on."""
    return _DATA_CENTRE.search(name) is not None and _WORKSTATION.search(name) is None


def _choice(image: Image, host: Host, rejected: tuple[Rejected, ...]) -> ImageChoice:
    reference = ImageReference(image.repository, image.tag, image.digest or "", _architecture(host), image.bytes or 0)
    older = None if host.accelerator != "cuda" or _as_it_is(image, host) else _older(image, host)
    return ImageChoice(
        reference,
        dict(older.environment) if older else {},
        image.command,
        tuple(_reasons(image, host, rejected, older)),
        rejected,
    )


def _reasons(image: Image, host: Host, rejected: tuple[Rejected, ...], older: OlderDriver | None) -> Iterator[Reason]:
    told = "; ".join(
        f"{each.candidate.rpartition(':')[2]}: {each.sentence}"
        for each in rejected
        if each.code not in {"accelerator", "architecture"}
    )
    what = f"chose {image.tag}" + (f", {image.note}" if image.note else "")
    preferred = f"the preferred image for {host.accelerator}" + (f": {image.note}" if image.note else "")
    yield Reason("image", image.name, "computed", f"{told}; {what}" if told else preferred)
    if older is not None:
        sentence = f"driver {host.driver} is older than {image.driver}: {older.note}"
        yield Reason("image.driver", host.driver, "computed", sentence)
        if variables := ", ".join(f"{name}={value}" for name, value in older.environment.items()):
            yield Reason("image.environment", variables, "computed", "what these need")
    if host.accelerator == "cuda" and image.driver and not host.driver:
        yield Reason("image.driver", "", "assumed", f"the driver's version is not known; it must be {_drivers(image)}")


#: What a refusal of the last image that was for this accelerator is called, by its rule.
_CODES = {
    "driver": DiagnosisCode.DRIVER_UNSUPPORTED,
    "device": DiagnosisCode.DEVICE_UNSUPPORTED,
    "architecture": DiagnosisCode.CPU_UNSUPPORTED,
    "repository": DiagnosisCode.POLICY_DENIED,
    "digest": DiagnosisCode.POLICY_DENIED,
}
_HINTS = {
    "driver": "install a newer driver, or name another image in catalog/engines.yaml of the configuration directory",
    "device": "choose another engine or device",
    "architecture": "name an image for this machine in catalog/engines.yaml of the configuration directory",
    "repository": "allow the repository in images.repositories",
    "digest": "pin it: give its digest in catalog/engines.yaml of the configuration directory",
}


def _diagnosed(engine: str, host: Host, rejected: Sequence[Rejected]) -> Diagnosis:
    near = [each for each in rejected if each.code != "accelerator"]
    if not near:
        message = f"no image of {engine} for {host.accelerator} is known"
        hint = "name one in catalog/engines.yaml of the configuration directory"
        return Diagnosis(DiagnosisCode.IMAGE_MISSING, message, hint=hint)
    told = "; ".join(f"{each.candidate}: {each.sentence}" for each in near)
    # The last one asks least of the node: what it lacks is what would have to change.
    last = near[-1].code
    return Diagnosis(_CODES[last], f"no image of {engine} runs on this node: {told}", hint=_HINTS[last])


def _architecture(host: Host) -> str:
    return _MACHINES.get(host.machine, host.machine)


def _number(version: str) -> tuple[int, ...]:
    """`575.51.03` as (575, 51, 3); what is no number ends it."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


@cache
def shipped() -> Catalog:
    """The catalog that comes with the agent."""
    return Catalog(validate(_File, json.loads(_SHIPPED.read_bytes()), _SHIPPED.name))


def load(own: Path | None = None) -> Catalog:
    """The shipped catalog, changed by the operator's file where there is one. Raises `InvalidArgument` that names the
    file, the field and the rule.

    Of each engine the operator's images come first. One that has the repository and tag of a shipped one changes only
    the keys that it gives.
    """
    if own is None or not exists(own):
        return shipped()
    tree = load_file(own)
    known: dict[str, list[dict[str, Any]]] = json.loads(_SHIPPED.read_bytes())["engines"]
    if isinstance(given := tree.get("engines"), dict):
        joined = {engine: _joined(known.get(engine, []), images) for engine, images in given.items()}
        tree = {**tree, "engines": known | joined}
    try:
        return Catalog(validate(_File, tree, own.name))
    except InvalidArgument as error:
        violations = error.violations
        raise InvalidArgument(f"{own}: {error.message}", violations=violations) from None


def _joined(known: list[dict[str, Any]], given: object) -> object:
    """The operator's images, then those that ship and are not among them."""
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        return given  # validation says what is wrong with it
    images: list[dict[str, Any]] = []
    for each in given:
        same = [image for image in known if _key(image) == _key(each)]
        images += [image | each for image in same] or [each]
    return images + [image for image in known if _key(image) not in map(_key, given)]


def _key(image: Mapping[str, Any]) -> tuple[Any, Any]:
    return image.get("repository"), image.get("tag")


def derived(edited: Path) -> str:
    """The contents of images.json for the file that people edit: one line an image. Raises `InvalidArgument`."""
    tree = load_file(edited)
    validate(_File, tree, edited.name)
    engines = ",\n".join(
        f"{json.dumps(engine)}: [\n" + ",\n".join(compact(image) for image in images) + "\n]"
        for engine, images in tree["engines"].items()
    )
    return f'{{"engines": {{\n{engines}\n}}}}\n'


def main() -> None:
    """Write images.json anew; run in the repository's root."""
    _SHIPPED.write_text(derived(_EDITED), encoding="utf-8")


if __name__ == "__main__":
    main()
