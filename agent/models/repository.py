"""What a repository on a hub holds, as far as plans depend on it. Frozen data."""

from __future__ import annotations

from dataclasses import dataclass

from agent.models.profile import ModelProfile


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one look at a repository may cost."""

    seconds: float = 30.0
    bytes: int = 256 * 1024**2  # received, headers of all files together
    levels: int = 12  # GGUF files that are read where none is named


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a hub. A token is not part of it: it travels in the environment."""

    endpoint: str  # https://huggingface.co, or a mirror
    repo: str  # owner/name
    revision: str = "main"  # a branch, a tag or a commit
    variant: str = ""  # a quantization or a level of GGUF; "": all that are there
    bounds: Bounds = Bounds()


@dataclass(frozen=True, slots=True)
class Variant:
    """Weights that an engine can load."""

    profile: ModelProfile
    quantization: str  # as a reference names it: awq, bf16, Q4_K_M, UD-Q4_K_XL
    bytes: int  # of its weight files
    file: str = ""  # GGUF: the file, or the first of its parts


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit."""

    repo: str  # as the hub writes it
    commit: str
    gated: bool
    base_model: str  # what its card says that it was made from; "": nothing
    variants: tuple[Variant, ...]
    left_out: tuple[str, ...] = ()  # GGUF files that are there and are no variant here, each with the reason


@dataclass(frozen=True, slots=True)
class Quantized:
    """A repository that says of itself that it is a model's quantized form. Nothing of it was read."""

    repo: str
    downloads: int = 0  # lately, as the hub counts them
    tags: tuple[str, ...] = ()  # gguf, safetensors, mlx, awq ...


@dataclass(frozen=True, slots=True)
class Related:
    """The quantized forms of a model that a hub lists, most downloaded first."""

    repositories: tuple[Quantized, ...]
    complete: bool = True  # whether there are no more
