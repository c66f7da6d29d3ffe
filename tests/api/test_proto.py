from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUF = ROOT / "node_modules" / ".bin" / "buf"


def _run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(not BUF.exists(), reason="buf is not installed")
def test_the_proto_files_pass_buf_lint():
    result = _run(BUF, "lint", cwd=ROOT / "proto")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(not BUF.exists(), reason="buf is not installed")
def test_the_lint_rules_that_are_switched_off_are_the_only_ones_that_would_fail(tmp_path: Path):
    """An exception that is no longer needed must go."""
    shutil.copytree(ROOT / "proto" / "agent", tmp_path / "agent")
    config = (ROOT / "proto" / "buf.yaml").read_text()
    excepted = {line.strip("- ") for line in config.splitlines() if line.strip().startswith("- ")}
    (tmp_path / "buf.yaml").write_text("version: v2\nlint:\n  use: [STANDARD]\n")
    result = _run(BUF, "lint", "--error-format=json", cwd=tmp_path)
    assert excepted == {line.split('"type":"')[1].split('"')[0] for line in result.stdout.splitlines()}


def test_the_generated_code_is_fresh():
    result = _run("scripts/codegen", "--check")
    assert result.returncode == 0, result.stderr


def test_stale_generated_code_is_found(tmp_path: Path):
    for part in ("scripts", "proto", "agent/v1"):
        shutil.copytree(ROOT / part, tmp_path / part)
    with (tmp_path / "proto/agent/v1/agent.proto").open("a") as proto:
        proto.write("\nmessage Added {}\n")
    result = _run(tmp_path / "scripts/codegen", "--check", cwd=tmp_path)
    assert result.returncode == 1
    assert "stale" in result.stderr


def test_codegen_refuses_other_arguments():
    assert _run("scripts/codegen", "--force").returncode == 2
