"""What an executable prints of its options is asked of it, in its own form, and tells which flags its version lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from agent.engines import executables
from agent.engines.base import RanksEngine
from agent.engines.sglang import SGLang
from agent.engines.tensorrt_llm import TensorRTLLM
from agent.engines.tgi import TGI
from agent.planning import flags
from tests.engines.rank_plans import plan

ADAPTERS: dict[str, RanksEngine] = {"sglang": SGLang(), "tgi": TGI(), "tensorrt-llm": TensorRTLLM()}
#: How argparse, clap and click print an option with those spellings.
FORMS: dict[str, Callable[[list[str]], str]] = {
    "sglang": lambda names: (
        "  " + ", ".join(f"{name} VALUE" for name in names) + "\n                        What it is.\n"
    ),
    "tgi": lambda names: f"      {names[-1]} <VALUE>\n          What it is.\n          [env: VALUE=]\n",
    "tensorrt-llm": lambda names: f"  {', '.join(names)} INTEGER\n                                  What it is.\n",
}
CASES = [
    ("sglang", "sglang", ["serve", "--model-type", "llm", "--help"], "--context-length"),
    ("tgi", "text-generation-launcher", ["--help"], "--max-total-tokens"),
    ("tensorrt-llm", "trtllm-serve", ["serve", "--help"], "--served_model_name"),
]


def executable(folder: Path, name: str, engine: str, asked: list[str], lacks: str) -> Path:
    """Prints the recorded options of the engine but one, when it is asked as its command line wants."""
    record = resources.files("agent.engines").joinpath(f"{engine.replace('-', '_')}_options.txt").read_text()
    rows = [line.split()[:-1] for line in record.splitlines() if line and not line.startswith("#")]
    (folder / "help").write_text("".join(FORMS[engine](row) for row in rows if lacks not in row))
    script = folder / name
    script.write_text(f'#!/bin/sh\n[ "$*" = "{" ".join(asked)}" ] && cat {folder}/help\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(("engine", "name", "asked", "lacks"), CASES, ids=[case[0] for case in CASES])
def test_a_flag_that_the_installed_version_lacks_is_found_before_its_start(
    tmp_path: Path, engine: str, name: str, asked: list[str], lacks: str
) -> None:
    adapter = ADAPTERS[engine]
    for without in ("", lacks):
        folder = tmp_path / (without or "all")
        folder.mkdir()
        located = adapter.locate((str(executable(folder, name, engine, asked, without)),))
        assert located is not None
        known = executables.learn(located, 20)
        assert known is not None
        made = replace(plan(adapter), binary=located.argv)

        problem = flags.problem(made, adapter, replace(located, options=known))

        assert (problem is None) is (without == "")
        assert problem is None or (lacks in problem.message and problem.hint)


def test_a_python_module_is_asked_without_a_subcommand(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)

    located = ADAPTERS["sglang"].locate((str(python), "-m", "sglang.launch_server"))

    assert located is not None
    assert located.lists == ("--help",)
