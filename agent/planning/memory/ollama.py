"""Ollama: llama.cpp's memory, for as many parallel requests as it was told, with a reserve on each device.

Sources: ollama's `llm/server.go` and `fs/ggml/ggml.go` (`GraphSize`), `discover/` (minimum free memory).
"""

from __future__ import annotations

from dataclasses import replace

from agent.models.profile import ModelProfile
from agent.planning.memory import llama_cpp
from agent.planning.memory.base import GIB, MIB, Estimate, Request

#: What it leaves free of each device (`MinimumMemory` of CUDA and ROCm).
RESERVE = 457 * MIB


def estimate(profile: ModelProfile, request: Request) -> Estimate:
    """The context is shared out: each of `max_num_seqs` requests has one of its own."""
    length = request.max_model_len or _context(request)
    card = request.card
    free = (card.free if card.free is not None else card.total) - RESERVE
    return llama_cpp.estimate(profile, replace(request, max_model_len=length, card=replace(card, free=max(0, free))))


def _context(request: Request) -> int:
    """Since 0.15 the default follows the memory of all devices (`envconfig/config.go`)."""
    total = request.card.total * max(1, request.tensor)
    return 4096 if total < 24 * GIB else 32768 if total < 48 * GIB else 262144
