"""Run by vLLM's own Python: what the engine itself reports of its cache, for one model after the other.

Reads JSON lines on stdin, each {"name", "model", "arguments"}, and answers each with {"name", "line"}, and "blocks"
and "block" or "error". vLLM is imported once; each model is loaded in a fork, because an engine is not made to
be taken down within its process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "INFO",
}


def main() -> None:
    from vllm import LLM

    for module in ("torch._dynamo", "vllm.model_executor.models.llama", "vllm.v1.worker.cpu_worker"):
        importlib.import_module(module)  # once, not in every fork

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        case = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            answer = {"name": case["name"], **report(LLM, case)}
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        died = json.dumps({"name": case["name"], "error": "the engine died"}).encode()
        answers.write((text or died).decode() + "\n")


def report(engine: type, case: dict) -> dict:
    """The line is there before a CPU without the kernels refuses a cache type."""
    answer = {}
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            made = engine(
                model=case["model"],
                load_format="dummy",
                skip_tokenizer_init=True,
                enforce_eager=True,
                **case["arguments"],
            )
            cache = made.llm_engine.vllm_config.cache_config
            answer = {"blocks": cache.num_gpu_blocks, "block": cache.block_size}
        except BaseException:
            answer = {"error": traceback.format_exc()[-3000:]}
        sys.stdout.flush()
        log.seek(0)
        lines = [line.strip() for line in log.read().decode().splitlines() if "KV cache size" in line]
    return {"line": lines[-1] if lines else "", **answer}


if __name__ == "__main__":
    main()
