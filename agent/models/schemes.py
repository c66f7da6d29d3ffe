"""How matrices of a quantized checkpoint are stored, and which: a scheme for each module that its rules name."""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.models.alike import Alike
from agent.models.families.base import Kind
from agent.models.safetensors import BITS


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements of one type. `scale`: beside the weights, not weights themselves."""

    dtype: str
    elements: int
    scale: bool = False

    @property
    def bytes(self) -> int:
        return -(-self.elements * BITS[self.dtype] // 8)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one [output, input] matrix is stored."""

    name: str
    bits: int
    dtype: str  # of the packed weights
    scale: str = ""  # type of the scales; "": none
    group: int = 0  # inputs a scale; 0: a scale a channel, unless `block` or `single`
    block: tuple[int, int] = (0, 0)
    single: bool = False  # one scale for the matrix
    zero: str = ""  # zero points: "packed" like the weights, or a type of their own (MLX's biases)
    extra: tuple[Piece, ...] = ()  # for each matrix, whatever its size
    index: bool = False  # GPTQ's g_idx: an I32 for each input
    activations: str = ""
    activation_bits: int = 16

    def pieces(self, out: int, into: int) -> tuple[Piece, ...]:
        scales = self._scales(out, into)
        found = [Piece(self.dtype, -(-out * into * self.bits // BITS[self.dtype])), *self.extra]
        if self.scale:
            found.append(Piece(self.scale, scales, scale=True))
        if self.zero == "packed":
            found.append(Piece(self.dtype, -(-scales * self.bits // BITS[self.dtype]), scale=True))
        elif self.zero:
            found.append(Piece(self.zero, scales, scale=True))
        if self.index:
            found.append(Piece("I32", into, scale=True))
        return tuple(found)

    def _scales(self, out: int, into: int) -> int:
        if self.single:
            return 1
        if self.block != (0, 0):
            return -(-out // self.block[0]) * -(-into // self.block[1])
        return out * -(-into // self.group) if self.group else out


#: Wildcards and expressions of one list; real ones have less than a hundred.
_MOST_PATTERNS = 1024
#: Characters of a module's name or of an expression for them; real ones have less than 100.
_LONGEST_NAME = 512


class Names:
    """Modules that a configuration names: whole, by a part of their path, by wildcards or by regular expressions."""

    #: A regular expression may not repeat a group, nor have more than three open repetitions: no input makes it slow.
    _SAFE = re.compile(r"(?!.*\)[*+{?])(?!(?:.*[^\\][*+]){4}).{1,256}", re.DOTALL)
    _BLIND = re.compile(r"(?:re:(?:[A-Za-z_^$|()]|\.\*|\\\.)*|[A-Za-z_.*-]*)")

    def __init__(self, patterns: Iterable[str]) -> None:
        self._plain: set[str] = set()
        self._parts: set[str] = set()
        wild: list[str] = []
        self.too_complex: list[str] = []
        self._by_layer = False
        for pattern in patterns:
            if len(wild) > _MOST_PATTERNS:
                self.too_complex.append(pattern)
                break
            self._by_layer = self._by_layer or self._BLIND.fullmatch(pattern) is None
            if pattern.startswith("re:"):
                self._add_expression(pattern[3:], wild)
            elif any(character in pattern for character in "*?["):
                wild.append(fnmatch.translate(bare(pattern)))
                wild.append(fnmatch.translate(bare(pattern) + ".*"))
            elif "." in pattern:
                self._plain.add(bare(pattern))
            else:
                self._parts.add(pattern)
        self._wild = [re.compile(expression) for expression in wild]

    def _add_expression(self, expression: str, wild: list[str]) -> None:
        if len(expression) <= _LONGEST_NAME and self._SAFE.fullmatch(expression):
            with contextlib.suppress(re.error, RecursionError, OverflowError):
                re.compile(expression)
                wild.append(expression)
                return
        self.too_complex.append(expression)

    @property
    def by_layer(self) -> bool:
        """Whether a module may be among them and the same of another layer not. Only `*`, `.*` and letters take every
        number for the same.
        """
        return self._by_layer

    def __bool__(self) -> bool:
        return bool(self._plain or self._parts or self._wild)

    def __contains__(self, module: object) -> bool:
        name = str(module)
        if len(name) > _LONGEST_NAME:
            return False
        short = bare(name)
        parts = short.split(".")
        if self._parts.intersection(name.split(".")) or "Linear" in self._parts:
            return True
        if any(".".join(parts[:end]) in self._plain for end in range(1, len(parts) + 1)):
            return True
        return any(expression.match(short) or expression.match(name) for expression in self._wild)


def bare(name: str) -> str:
    """The name without what only says where the text model lies: checkpoints and configurations differ in that."""
    return re.sub(r"^(?:(?:model|language_model|text_model|transformer)\.)+", "", name)


@dataclass(frozen=True, slots=True)
class Rules:
    """Which matrix is stored how."""

    default: Scheme | None = None
    ignored: Names = field(default_factory=lambda: Names(()))
    groups: tuple[tuple[Names, Scheme], ...] = ()  # the first that names a module wins; then the default
    head: bool = False  # the output head too
    embedding: bool = False
    only_experts: bool = False
    expert_scheme: Scheme | None = None
    exact: bool = True  # False: how it is stored is not known

    def scheme(self, module: str, kind: Kind) -> Scheme | None:
        """None: as trained."""
        if kind in {Kind.EXACT, Kind.FLOAT} or module in self.ignored:
            return None
        for names, scheme in self.groups:
            if module in names and (kind != Kind.HEAD or self.head or "lm_head" in names):
                return scheme if kind != Kind.EMBEDDING or self.embedding else None
        if kind == Kind.EMBEDDING and not self.embedding:
            return None
        if kind == Kind.HEAD and not self.head:
            return None
        routed = ".experts." in module
        if routed and self.expert_scheme is not None:
            return self.expert_scheme
        return None if self.only_experts and not routed else self.default

    def stored(self, weights: Alike) -> Iterable[tuple[Scheme | None, tuple[int, ...]]]:
        """How the weights of which layers are stored."""
        if len(weights.weight.shape) != 2:
            return ((None, weights.layers),)
        kind, layers = weights.weight.kind, weights.layers
        if len(layers) == 1 or not (self.ignored.by_layer or any(names.by_layer for names, _ in self.groups)):
            return ((self.scheme(weights.module(layers[0]), kind), layers),)
        found: dict[Scheme | None, list[int]] = {}
        for layer in layers:
            found.setdefault(self.scheme(weights.module(layer), kind), []).append(layer)
        return ((scheme, tuple(those)) for scheme, those in found.items())
