"""The project's outside: what a wheel holds, and that scripts, documents and the systemd unit keep their word."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import RawConfigParser
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
SCRIPTS = sorted(p for p in (ROOT / "scripts").iterdir() if p.is_file() and not p.suffix)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
UNIT = ROOT / "systemd" / "agentd.service"


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=50, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree, built without a network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, ROOT]
    built = run(*command, cwd=out)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_a_wheel_holds_every_file_of_the_package(wheel):
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "agent").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"agent/py.typed", "agent/runtimes/shim.sh"} <= files
    assert any(name.endswith("_options.txt") for name in files)

    packaged = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}

    assert packaged == files


def test_a_wheel_installs_both_commands_and_the_licence(wheel):
    texts = {name.split("/", 1)[1]: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}

    assert "agentd = agent.daemon:main" in texts["entry_points.txt"]
    assert "agentctl = agent.ctl.main:main" in texts["entry_points.txt"]
    assert texts["licenses/LICENSE"] == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_every_dependency_is_bounded_on_both_sides(requirement):
    assert re.search(r"==|>=.*,<", requirement), requirement


def test_every_dependency_of_the_daemon_and_agentctl_is_imported_somewhere():
    """A package that nothing imports is weight; the extra `docker` is a promise, and no dependency."""
    sources = "\n".join(path.read_text() for path in (ROOT / "agent").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", sources, re.MULTILINE))
    needed = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in PROJECT["dependencies"]}

    used = {
        distribution.lower()
        for module, distributions in packages_distributions().items()
        if module in imported
        for distribution in distributions
    }

    assert needed - used == set()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_explains_itself(script):
    """--help prints how to use it, from any directory, and changes nothing."""
    told = run(script, "--help", cwd=Path("/"))

    assert (told.returncode, told.stderr) == (0, "")
    assert "usage:" in told.stdout.lower()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_executable_and_refuses_what_it_does_not_know(script):
    assert script.stat().st_mode & 0o111 == 0o111
    if "[PYTEST ARGUMENT]" not in script.read_text():  # those hand their arguments to pytest, after minutes of set-up
        assert run(script, "--no-such-flag").returncode not in {0, None}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_documents_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not link.startswith(("https://", "http://", "#")):
            assert (document.parent / link.split("#")[0]).exists(), f"{document}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_documents_name_exist(document):
    """A path in backticks that starts in a folder of this project, placeholders in capitals excepted."""
    for path in re.findall(r"`((?:agent|configs|docs|proto|scripts|systemd|tests)/[\w./*-]+)`", document.read_text()):
        if not re.search(r"[A-Z]{3}|_x\b|/x\b", path):
            assert list(ROOT.glob(path.rstrip("/"))), f"{document}: {path}"


def test_commands_of_the_readme_exist():
    """Every `agentctl COMMAND` that a document tells a person to run is one that agentctl has."""
    from agent.ctl.main import COMMANDS

    for document in DOCUMENTS:
        told = re.findall(r"(?:^ {4}|`)agentctl ([a-z]+)", document.read_text(), re.MULTILINE)
        assert set(told) <= set(COMMANDS), document


def test_decisions_are_numbered_without_gaps_and_listed():
    index = (ROOT / "docs" / "README.md").read_text()
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))

    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    assert [name for name in names if f"decisions/{name}" not in index] == []


def unit() -> RawConfigParser:
    parser = RawConfigParser()  # refuses a key given twice, which systemd would not
    parser.optionxform = str  # systemd's keys have capitals
    parser.read_string(UNIT.read_text())
    return parser


def test_the_unit_never_takes_engines_down_and_always_comes_back():
    service = dict(unit()["Service"])

    assert service["KillMode"] == "process"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert service["Restart"] == "always"
    assert unit()["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["Type"] == "notify"
    assert service["ExecStart"].endswith("/agentd --system")


def test_the_unit_creates_the_directories_that_the_daemon_takes_by_default():
    from agent.config import default_paths

    service = unit()["Service"]
    roots = {"State": "/var/lib", "Cache": "/var/cache", "Logs": "/var/log", "Runtime": "/run"}
    created = {kind: f"{root}/{service[f'{kind}Directory']}" for kind, root in roots.items()}
    paths = default_paths("system", {})

    assert created["State"] == str(paths.state)
    assert created["Cache"] == str(paths.cache)
    assert created["Logs"] == str(paths.logs)
    assert created["Runtime"] == str(paths.runtime)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub("^ExecStart=.*", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))

    checked = run("systemd-analyze", "verify", "--man=no", copy)

    newer = re.compile(
        "Unknown key '(RestartSteps|RestartMaxDelaySec|DelegateSubgroup)'"
    )  # unknown before 254, and skipped
    assert [line for line in checked.stderr.splitlines() if str(copy) in line and not newer.search(line)] == []
