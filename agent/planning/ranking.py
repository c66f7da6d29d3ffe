"""Which candidate is tried first: engines by hardware and aim, variants by what the devices compute best.

Each adapter says where its engine stands (`Capabilities.suits`); the tables of quantizations are here. Both are those
that practitioners use: docs/reference/planning.md shows them, decision 9 says why. Lower sorts first; equal requests
give equal orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from types import MappingProxyType

from agent.engines.base import Engine, Hardware
from agent.hardware.inventory import Device
from agent.planning.candidates import Candidate
from agent.planning.images import order
from agent.planning.plan import GIB, Rejected
from agent.planning.request import PlanRequest

#: More requests at a time than this want an engine that batches them.
MANY_REQUESTS = 10
#: Cards with less memory are a person's own: one user, GGUF, a desktop beside it. Bytes.
SMALL_CARD = 20 * GIB


class Generation(StrEnum):
    """What decides between quantizations."""

    BLACKWELL = "Blackwell"
    HOPPER = "Hopper"
    ADA = "Ada"
    AMPERE = "Ampere"
    TURING = "Turing or older"
    AMD_FP4 = "AMD with FP4"
    AMD_FP8 = "AMD with FP8"
    AMD = "AMD before FP8"
    OTHER = "this hardware"


#: Without a place of its own.
_LAST = 1 << 30
#: An aim's engines come before those of the hardware; here only development's do.
_NO_CARDS = frozenset({Hardware.CPU, Hardware.APPLE})

_SIXTEEN = ("bf16", "f16")
#: Quantizations of safetensors by what devices compute natively, best first: FP4, FP8, then four bits through Marlin.
QUANTIZATIONS: Mapping[Generation, tuple[str, ...]] = MappingProxyType(
    {
        Generation.BLACKWELL: (
            "nvfp4", "mxfp4", "fp8", "fp8-block", "awq", "gptq", "w4a16", *_SIXTEEN, "gptq-w8a16", "int8", "f32",
        ),
        Generation.HOPPER: (
            "fp8", "fp8-block", "mxfp4", "awq", "gptq", "w4a16", "int8", *_SIXTEEN, "gptq-w8a16", "nvfp4", "f32",
        ),
        Generation.ADA: (
            "fp8", "fp8-block", "awq", "gptq", "w4a16", "mxfp4", "int8", *_SIXTEEN, "gptq-w8a16", "nvfp4", "f32",
        ),
        Generation.AMPERE: (
            "awq", "gptq", "w4a16", "mxfp4", "int8", *_SIXTEEN, "gptq-w8a16", "fp8", "fp8-block", "nvfp4", "f32",
        ),
        Generation.TURING: ("awq", "gptq", "w4a16", *_SIXTEEN, "int8", "gptq-w8a16", "f32"),
        Generation.AMD_FP4: ("mxfp4", "fp8", "fp8-block", *_SIXTEEN, "awq", "gptq", "w4a16", "int8", "f32"),
        Generation.AMD_FP8: ("fp8", "fp8-block", *_SIXTEEN, "mxfp4", "awq", "gptq", "w4a16", "int8", "f32"),
        Generation.AMD: (*_SIXTEEN, "awq", "gptq", "w4a16", "int8", "gptq-w8a16", "f32"),
        Generation.OTHER: ("awq", "gptq", "w4a16", "int8", *_SIXTEEN, "gptq-w8a16", "f32"),
    }
)  # fmt: skip
#: Levels of GGUF, and MLX's. Q4_0 is no default: others of its size lose less.
LEVELS = (
    "mlx-w4a16", "Q4_K_M", "MXFP4", "Q4_K_L", "Q5_K_M", "Q5_K_S", "Q6_K", "mlx-w6a16", "Q8_0", "mlx-w8a16", "Q4_K_S",
    "IQ4_XS", "IQ4_NL", "Q4_1", "BF16", "F16", "F32",
)  # fmt: skip
LOSSY = (
    "Q3_K_L", "Q3_K_M", "IQ3_M", "Q3_K_S", "IQ3_S", "IQ3_XS", "IQ3_XXS", "mlx-w3a16", "Q2_K_L", "Q2_K", "IQ2_M",
    "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "mlx-w2a16", "Q4_0",
)  # fmt: skip
#: More bits than four come first where the weights take at most this part of the chosen devices' memory: the rest is
#: for contexts. Not on a CPU, whose speed is the bytes that it reads for each token.
RICHER: Mapping[str, float] = MappingProxyType(
    {"Q8_0": 1 / 4, "mlx-w8a16": 1 / 4, "Q6_K": 1 / 3, "mlx-w6a16": 1 / 3, "Q5_K_M": 1 / 2, "Q5_K_S": 1 / 2}
)
_TRUST = {"": 0, "maker": 0, "vendor": 1, "community": 2}
_PUBLISHERS = {"": "named by the spec", "maker": "the maker's", "vendor": "a vendor's", "community": "the community's"}


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate at one place of the order. `most`: only if its weights take at most this part of the devices."""

    candidate: Candidate
    key: tuple[int, ...]
    most: float | None = None
    lossy: bool = False

    @property
    def engine(self) -> str:
        return self.candidate.engine.name


class Ranking:
    """The order of one request's candidates, and why each comes after another."""

    def __init__(self, request: PlanRequest, devices: Sequence[Device]) -> None:
        self.aim, self._named = aim(request), request.spec.engine != "auto"
        best = max(devices, key=lambda device: (device.memory_bytes, device.id), default=None)
        self.hardware = hardware(best)
        self.generation = generation(best)
        self._aimed = self.hardware not in _NO_CARDS or self.aim == "development"
        self._listed = {name: place for place, name in enumerate(request.engines)}
        self._variants = _variants(self.generation)
        self._richer = {name: place for place, name in enumerate(RICHER)} if self.hardware != Hardware.CPU else {}

    def at_home(self, found: Sequence[Candidate]) -> tuple[list[Candidate], list[Rejected]]:
        """Without engines that are for other hardware, unless there are no others or the spec names one."""
        home = [candidate for candidate in found if self.hardware in candidate.engine.capabilities.suits]
        if self._named or not home:
            return list(found), []
        at_home = {candidate.engine.name for candidate in home}
        away = dict.fromkeys(candidate.engine.name for candidate in found if candidate.engine.name not in at_home)
        rule = f"is not for {self.hardware}; `engine` in the spec can name it"
        return home, [Rejected(name, "hardware", f"{name} {rule}") for name in away]

    def ranked(self, candidates: Iterable[Candidate]) -> list[Ranked]:
        """Best first. One with more bits than usual stands twice: where there is much memory for it, and where not."""
        return sorted((each for candidate in candidates for each in self._places(candidate)), key=lambda each: each.key)

    def _places(self, candidate: Candidate) -> Iterable[Ranked]:
        name = candidate.profile.quantization
        after = (_TRUST.get(candidate.option.trust, len(_TRUST)), candidate.place, order(candidate.located))
        engine = self._place(candidate.engine)
        if name in self._richer:
            yield Ranked(candidate, (*engine, self._richer[name], *after), RICHER[name])
        usual = self._variants.get(name, self._variants[""])
        yield Ranked(candidate, (*engine, usual, *after), None, name in LOSSY)

    def _place(self, engine: Engine) -> tuple[int, ...]:
        suits = engine.capabilities.suits
        aimed = suits.get(self.aim, _LAST) if self._aimed else _LAST
        listed = self._listed[engine.name]
        return aimed, suits.get(self.hardware, _LAST), listed

    def why_lower(self, lower: Ranked, chosen: Ranked) -> str:
        """Why one that could serve too stands behind the one that was chosen."""
        if lower.engine != chosen.engine:
            return f"ranked lower: {lower.engine} comes after {chosen.engine} {self.purpose}"
        one, other = lower.candidate.profile.quantization, chosen.candidate.profile.quantization
        if one != other:
            return f"ranked lower: {one} comes after {other} on {self._computing}"
        ours, theirs = lower.candidate.option.trust, chosen.candidate.option.trust
        if ours != theirs:
            return f"ranked lower: {_PUBLISHERS.get(ours, ours)} comes after {_PUBLISHERS.get(theirs, theirs)}"
        if lower.candidate.place == chosen.candidate.place:
            return "ranked lower: what is here already comes before an image, unless the image reaches devices"
        return "ranked lower: listed later"

    def why_variant(self, chosen: Ranked) -> str:
        """Why the variant that was chosen comes before others."""
        if chosen.most is not None:
            return f"more bits than usual: its weights take at most {chosen.most:.0%} of the devices' memory"
        published = _PUBLISHERS.get(chosen.candidate.option.trust, "")
        return f"the first that fits, in the order of {self._computing}" + (f"; {published}" if published else "")

    @cached_property
    def purpose(self) -> str:
        return f"on {self.hardware}" if self.aim == "auto" else f"for {self.aim} on {self.hardware}"

    @property
    def _computing(self) -> str:
        return self.hardware if self.generation == Generation.OTHER else self.generation


@cache
def _variants(of: Generation) -> Mapping[str, int]:
    """The places of quantizations, behind those of the richer ones; "" is the place of what no table has."""
    stored = QUANTIZATIONS[of]
    names = (*(LEVELS + stored if of == Generation.OTHER else stored + LEVELS), "", *LOSSY)
    return MappingProxyType({name: place + len(RICHER) for place, name in enumerate(names)})


def aim(request: PlanRequest) -> str:
    """What the spec says; otherwise throughput for many requests at a time."""
    asked = request.spec.workload.aim
    expected = request.spec.workload.concurrency or request.spec.limits.max_num_seqs or 0
    return "throughput" if asked == "auto" and expected > MANY_REQUESTS else asked


def hardware(best: Device | None) -> Hardware:
    """By the largest device that may be used."""
    if best is None:
        return Hardware.CPU
    small = best.memory_bytes < SMALL_CARD
    if best.vendor == "nvidia":
        if (0, 0) < capability(best) < (7, 5):
            return Hardware.NVIDIA_OLD
        return Hardware.NVIDIA_SMALL if small else Hardware.NVIDIA
    if best.vendor == "amd":
        return Hardware.AMD_SMALL if small else Hardware.AMD
    return {"apple": Hardware.APPLE, "intel": Hardware.INTEL}.get(best.vendor, Hardware.CPU)


def generation(best: Device | None) -> Generation:
    if best is None or (best.vendor == "nvidia" and capability(best) == (0, 0)):
        return Generation.OTHER
    if best.vendor == "amd":
        facts = best.facts
        if facts is None or not facts.native_fp8:
            return Generation.AMD
        return Generation.AMD_FP4 if facts.native_fp4 else Generation.AMD_FP8
    if best.vendor != "nvidia":
        return Generation.OTHER
    steps = (
        ((10, 0), Generation.BLACKWELL), ((9, 0), Generation.HOPPER), ((8, 9), Generation.ADA),
        ((8, 0), Generation.AMPERE),
    )  # fmt: skip
    able = capability(best)
    return next((name for least, name in steps if able >= least), Generation.TURING)


def capability(device: Device) -> tuple[int, int]:
    """NVIDIA's compute capability; (0, 0) where it is not known."""
    return _parsed(device.compute_capability)


@cache
def _parsed(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return (int(major), int(minor or 0)) if major.isdecimal() else (0, 0)
