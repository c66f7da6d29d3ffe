"""Facts of GPU models: what no driver says (bandwidth, FP8 and FP4 ability), and what simulated devices are made of.

The table is `catalog.json`, with the sources of its numbers. Live values win: `complete` fills empty fields only.
Names are matched as whole words, and the memory must agree, so that a variant that is not in the table ("RTX 4090
Laptop GPU") gets no other one's facts.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from agent.frozen import frozen
from agent.hardware.inventory import Device, Facts, LinkKind, MemoryKind

MIB = 1024**2

#: Words after a model's name that make another model of it.
_VARIANT = re.compile(r"[ -](Ti|SUPER|D|Laptop|Mobile|Max-Q|Pro|Max|Ultra)\b", re.IGNORECASE)
#: What people call a family: the one of it that most servers have.
_FAMILIES: Mapping[str, str] = MappingProxyType({"a100": "a100-80-sxm", "h100": "h100-sxm", "h200": "h200-sxm"})
#: How far a live total may be from the table's: ECC takes a sixteenth of GDDR, other variants differ by more.
_MEMORY_TOLERANCE = 1 / 8


@frozen
class Slice:
    """What a MIG profile takes of a GPU: compute slices and memory parts; bytes as the driver lists them."""

    compute: int
    parts: int
    memory_bytes: int


@frozen
class Model:
    """One model of device. `lanes` each device has (NVLink) or shares with each peer (XGMI)."""

    id: str
    name: str  # as the driver says it
    match: tuple[str, ...]
    vendor: str
    architecture: str
    compute_capability: str
    form: str  # "pcie", "sxm", "oam", "superchip", "soc"
    host: Literal["server", "desktop", "superchip", "soc"]  # what it is usually found in
    memory_bytes: int  # of unified memory: all of it, in the largest configuration
    memory_kind: MemoryKind
    link: LinkKind | None
    lanes: int
    bridge: int  # how many devices one bridge joins; 0: a module or switch joins all
    slices: Mapping[str, Slice]  # MIG profiles, by name
    facts: Facts
    source: str

    def fits(self, memory_bytes: int) -> bool:
        """Whether a device with this much memory can be of this model."""
        return (
            self.memory_kind == "unified"
            or abs(memory_bytes - self.memory_bytes) <= self.memory_bytes * _MEMORY_TOLERANCE
        )


def find(id: str) -> Model | None:
    """The model with this id, or of this family."""
    word = id.lower()
    return models().get(_FAMILIES.get(word, word))


def nearest(id: str) -> tuple[str, ...]:
    """Up to three ids that may have been meant, the likeliest first."""
    word = id.lower()
    longer = [known for known in models() if word and known.startswith(word)]
    alike = difflib.get_close_matches(word, models(), n=3, cutoff=0.5)
    return tuple(dict.fromkeys((*longer, *alike)))[:3]


def facts(vendor: str, name: str, memory_bytes: int) -> Facts | None:
    """Facts of the model with this live name and total memory, if it is in the table."""
    model = _named(vendor, name)
    return model.facts if model and model.fits(memory_bytes) else None


def complete(device: Device) -> Device:
    """The device with its empty fields filled where the table knows them."""
    model = _named(device.vendor, device.name)
    if device.slice_profile:
        known = _of_slice(model, device.slice_profile)
    else:
        known = facts(device.vendor, device.name, device.memory_bytes)
    capability = device.compute_capability or (model.compute_capability if known and model else "")
    architecture = device.architecture or (model.architecture if known and model else "")
    return replace(
        device,
        architecture=architecture,
        compute_capability=capability,
        facts=device.facts or known or _abilities(device.vendor, architecture, capability),
    )


def _named(vendor: str, name: str) -> Model | None:
    """The model whose longest match is in the name."""
    found = (
        (len(text), model)
        for model in models().values()
        if model.vendor == vendor
        for text in model.match
        if (place := re.search(rf"(?<![A-Za-z0-9]){re.escape(text)}(?![A-Za-z0-9])", name))
        and not _VARIANT.match(name, place.end())
    )
    return max(found, key=lambda pair: pair[0], default=(0, None))[1]


def _of_slice(model: Model | None, profile: str) -> Facts | None:
    """A slice has its share of the GPU's bandwidth and speed, and all of its abilities."""
    if model is None:
        return None
    part = model.slices.get(profile.partition("+")[0])
    whole = max(model.slices.values(), key=lambda each: each.parts, default=None)
    if part is None or whole is None:
        return replace(model.facts, bandwidth_bytes_per_second=None, fp16_tflops=None)
    bandwidth, tflops = model.facts.bandwidth_bytes_per_second, model.facts.fp16_tflops
    return replace(
        model.facts,
        bandwidth_bytes_per_second=None if bandwidth is None else bandwidth * part.parts // whole.parts,
        fp16_tflops=None if tflops is None else round(tflops * part.compute / whole.compute, 1),
    )


def _abilities(vendor: str, architecture: str, capability: str) -> Facts | None:
    """What a model that is not in the table can compute: what all models with the same instruction set can."""
    key = capability or architecture
    known = {
        (model.facts.native_bf16, model.facts.native_fp8, model.facts.native_fp4)
        for model in models().values()
        if model.vendor == vendor and key in {model.compute_capability, model.architecture} - {""}
    }
    return Facts("", None, None, *known.pop()) if len(known) == 1 else None


@cache
def models() -> Mapping[str, Model]:
    """The table, by id."""
    data = json.loads(Path(__file__).with_name("catalog.json").read_text(encoding="utf-8"))
    return MappingProxyType({row["id"]: _model(row) for row in data["models"]})


def _model(row: Mapping[str, Any]) -> Model:
    link = row["link"] or {"kind": None, "lanes": 0, "bridge": 0}
    memory = row["memory_mib"] * MIB
    return Model(
        id=row["id"],
        name=row["name"],
        match=tuple(row["match"]),
        vendor=row["vendor"],
        architecture=row["architecture"],
        compute_capability=row["compute_capability"],
        form=row["form"],
        host=row["host"],
        memory_bytes=memory,
        memory_kind="unified" if row["unified"] else "dedicated",
        link=link["kind"],
        lanes=link["lanes"],
        bridge=link["bridge"],
        slices=MappingProxyType(_slices(row["mig"] or {}, memory)),
        facts=Facts(
            id=row["id"],
            bandwidth_bytes_per_second=round(row["bandwidth_gb_s"] * 1e9),
            fp16_tflops=row["fp16_tflops"],
            native_bf16=row["bf16"],
            native_fp8=row["fp8"],
            native_fp4=row["fp4"],
        ),
        source=row["source"],
    )


def _slices(rows: Mapping[str, Sequence[Any]], memory: int) -> dict[str, Slice]:
    parts = max((row[0] for row in rows.values()), default=0)
    return {
        name: Slice(int(name.partition("g.")[0]), part, memory * part // parts if mib is None else mib * MIB)
        for name, (part, mib) in rows.items()
    }
