"""The page about hardware says what the code does: models, keys, defaults, reasons and numbers."""

from __future__ import annotations

from pathlib import Path

from agent.hardware import catalog
from agent.hardware import health as rules
from agent.hardware.description import Description, Devices, Slices
from agent.hardware.health import Ground
from agent.hardware.machine import HOSTS
from agent.hardware.xids import XIDS, Effect
from agent.strict import Strict, sections

PAGE = (Path(__file__).parents[2] / "docs/reference/hardware.md").read_text()
GIB = 1024**3


def test_the_page_lists_every_model():
    for model in catalog.models().values():
        assert row(model) in PAGE


def row(model: catalog.Model) -> str:
    joined = {0: "all", 2: "pairs, by a bridge", 4: "up to 4, by a bridge"}[model.bridge]
    numbers = [name for name in ("bf16", "fp8", "fp4") if getattr(model.facts, f"native_{name}")]
    return line(
        f"`{model.id}`",
        model.name,
        f"{model.memory_bytes / GIB:.4g}",
        f"{(model.facts.bandwidth_bytes_per_second or 0) / 1e9:.5g}",
        ", ".join(numbers),
        f"{model.link}: {joined}" if model.link else "",
        ", ".join(model.slices),
    )


def line(*cells: str) -> str:
    """A row of a table."""
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"


def keys(prefix: str, model: type[Strict]) -> list[str]:
    return [line(f"`{prefix}{name}`", field.description or "") for name, field in model.model_fields.items()]


def test_the_page_has_every_key_of_a_description_with_its_meaning():
    wanted = [row for path, section in sections(Description) for row in keys("".join(f"{p}." for p in path), section)]
    for row in (*wanted, *keys("devices[].", Devices), *keys("devices[].mig[].", Slices)):
        assert row in PAGE


def test_the_page_has_the_defaults_of_hosts():
    for kind, usual in HOSTS.items():
        memory = f"{usual.memory // GIB} GiB" if usual.memory else "its model's"
        sizes = (str(usual.cores), str(usual.numa_nodes), usual.machine)
        assert line(kind, memory, *sizes, " ".join(usual.cpu_flags)) in PAGE


def test_the_page_has_every_reason_and_number_of_the_rules():
    grounds = [thing for thing in vars(rules).values() if isinstance(thing, Ground)]
    for ground in (*grounds, *rules.SLOWDOWNS.values()):
        assert f"`{ground.reason}`" in PAGE
    for number, what in (
        (rules.HOT_SAMPLES, "samples in a row"),
        (rules.COOL_SAMPLES, "samples without"),
        (rules.STALE_PERIODS, "periods"),
    ):
        assert f"{number} {what}" in PAGE


def test_the_page_has_every_xid_that_changes_a_condition():
    for row in xid_rows():
        assert row in PAGE


def xid_rows() -> list[str]:
    """Those that say the same share a row."""
    numbers: dict[tuple[str, ...], list[str]] = {}
    for number, error in XIDS.items():
        if error.effect is not Effect.NONE:
            numbers.setdefault((error.what, error.effect, error.advice), []).append(str(number))
    return [line(", ".join(those), *told) for told, those in numbers.items()]
