"""What a gateway is as a model: nothing to load, so that it is planned like any other."""

from __future__ import annotations

from agent.models.profile import ModelProfile

SCHEME = "gateway"
#: Tokens. Each back end has a context of its own, and refuses what is longer.
_ANY_CONTEXT = 100_000_000


def profile(names: str) -> ModelProfile:
    """`names`: what stands behind the scheme."""
    return ModelProfile(
        path="", format=SCHEME, architecture=SCHEME, name=names, quantization="none", file_bytes=0, tensor_bytes=0,
        parameters=0, layers=0, embedding_length=0, feed_forward_length=0, heads=0, kv_heads=(), key_length=0,
        value_length=0, context_length=_ANY_CONTEXT, vocabulary=0,
    )  # fmt: skip
