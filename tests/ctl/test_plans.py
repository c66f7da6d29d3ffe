"""Plans, comparisons and what fits, as people see them and as drawings."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import click
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.ctl import bars, svg
from agent.ctl.bars import Bar, Kind
from agent.ctl.exits import Exit
from agent.ctl.fitting import best_first, count
from agent.ctl.plans import holds
from agent.planning.plan import Capacity, MemoryBudget, MemoryTerm, Placement, Plan, Rejected, Variant
from agent.status import Diagnosis, DiagnosisCode
from agent.supervision.service import Fit, FitVerdict, Planned, Pool
from agent.v1 import agent_pb2 as pb
from tests.api.fake_node import make_fit, make_model
from tests.ctl.conftest import Invoke, Served
from tests.ctl.deployments import PLAN

GOLDEN = Path(__file__).parent / "golden"
GIB, MIB = 1024**3, 1024**2
H100 = "NVIDIA H100 80GB HBM3"
#: What the terminal is in tests: goldens must not depend on whose it is.
WIDE = {"COLUMNS": "80"}


def _share(device: str) -> MemoryBudget:
    """An engine that takes a share of each device as a whole."""
    terms = (
        MemoryTerm("weights", 8 * GIB, "a half of each matrix"),
        MemoryTerm("activation peak", GIB, "8192 tokens", uncertainty=GIB // 2),
        MemoryTerm("CUDA graphs", GIB // 2, "captured sizes"),
    )
    return MemoryBudget(device, terms, claimed=70 * GIB)


ON_TWO: Plan = replace(
    PLAN,
    deployment="qwen3-8b", model_name="qwen3-8b", engine="share", engine_version="", devices=("GPU-0", "GPU-1"),
    variant=Variant("hf:Qwen/Qwen3-8B:bf16", "Qwen/Qwen3-8B", "safetensors", "bf16", 16 * GIB, "Qwen3ForCausalLM"),
    budgets=(MemoryBudget("host", (MemoryTerm("process", 2 * GIB, "measured"),)), _share("GPU-0"), _share("GPU-1")),
    placement=Placement("cuda", tensor=2), capacity=Capacity(121 * GIB, 881_152, 107.6),
    limits=replace(PLAN.limits, gpu_memory_utilization=0.9, max_model_len=8192),
)  # fmt: skip
TWO = Planned(
    ON_TWO, None, ("share", "serve", "Qwen/Qwen3-8B"), {"SHARE_SEQS": "4", "NOTE": "two words"}, ("SHARE_KEY",),
    verdict=FitVerdict.FITS,
    notes=("binary share: no executable was looked for",),
    pools=(
        Pool("host", "host memory", 512 * GIB, 12 * GIB, GIB),
        Pool("GPU-0", H100, 80 * GIB, 6 * GIB), Pool("GPU-1", H100, 80 * GIB, 6 * GIB),
        Pool("GPU-2", H100, 80 * GIB, 0),
    ),
)  # fmt: skip
ONE = Planned(
    PLAN, None, ("llama-server", "-m", "/models/a b.gguf"), verdict=FitVerdict.ON_CPU,
    pools=(Pool("host", "host memory", 8 * GIB, GIB, GIB),),
)  # fmt: skip
REFUSED = Planned(
    None,
    Diagnosis(DiagnosisCode.DOES_NOT_FIT, "needs 27.0 GiB; 24.0 GiB is free", hint="what would fit: max_num_seqs 2"),
    verdict=FitVerdict.DOES_NOT_FIT, missing_bytes=3 * GIB,
    rejected=(
        Rejected("share, bf16", "memory", "needs 27.0 GiB; 24.0 GiB is free"),
        Rejected("share, fp8", "hardware", "runs fp8 from Ada on"),
        Rejected("share, nvfp4", "hardware", "runs fp8 from Ada on"),
    ),
    remedies=("max_num_seqs 2", "a second device like the first"),
)  # fmt: skip


@pytest.fixture
def plans(served: Served) -> dict[str, Planned]:
    """What the node answers, by the spec's name."""
    answers = {"qwen3-8b": TWO, "m": ONE, "large": REFUSED}

    async def plan(spec: dict[str, Any], hardware: object) -> Planned:
        return answers[spec["name"]]

    served.node.plan = plan  # type: ignore[method-assign, assignment]
    return answers


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plan.table", ["qwen3-8b"]),
        ("plan.explain", ["/m.gguf", "--explain"]),
        ("plan.svg", ["qwen3-8b", "-o", "svg"]),
        ("plan.compare", ["--compare", "qwen3-8b", "/m.gguf", "/large.gguf"]),
    ],
)
@pytest.mark.usefixtures("plans")
def test_plans_are_shown_as_they_were(ctl: Invoke, name: str, words: list[str]) -> None:
    done = ctl("plan", *words, env=WIDE)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == (GOLDEN / name).read_text()


@pytest.mark.usefixtures("plans")
def test_a_refusal_lists_its_candidates_and_what_would_make_it_fit(ctl: Invoke) -> None:
    done = ctl("plan", "/large.gguf", env=WIDE)
    assert done.exit_code == Exit.PRECONDITION
    assert done.stderr.startswith("error: large: does_not_fit: needs 27.0 GiB; 24.0 GiB is free\nhint: ")
    assert done.stdout == (GOLDEN / "plan.refused").read_text()


@pytest.mark.usefixtures("plans")
def test_json_has_all_of_a_plan_and_of_a_refusal(ctl: Invoke) -> None:
    found = json.loads(ctl("plan", "qwen3-8b", "-o", "json").stdout)
    assert found["plan"]["capacity"]["kv_tokens"] == 881_152
    assert found["verdict"] == "FIT_VERDICT_FITS"
    assert (found["environment"], found["secrets"]) == ({"NOTE": "two words", "SHARE_SEQS": "4"}, ["SHARE_KEY"])
    assert [pool["others_bytes"] for pool in found["pools"]] == [12 * GIB, 6 * GIB, 6 * GIB, 0]
    refused = json.loads(ctl("plan", "/large.gguf", "-o", "json").stdout)
    assert (refused["missing_bytes"], refused["remedies"]) == (3 * GIB, list(REFUSED.remedies))
    assert [one["candidate"] for one in refused["rejected"]] == ["share, bf16", "share, fp8", "share, nvfp4"]
    several = yaml.safe_load(ctl("plan", "--compare", "qwen3-8b", "/large.gguf", "-o", "yaml").stdout)
    assert [bool(one.get("plan")) for one in several["plans"]] == [True, False]


@pytest.mark.usefixtures("plans")
def test_the_drawing_is_valid_xml_with_a_rectangle_for_each_part(ctl: Invoke) -> None:
    root = ET.fromstring(ctl("plan", "qwen3-8b", "/m.gguf", "-o", "svg").stdout)
    space = {"s": "http://www.w3.org/2000/svg"}
    told = [title.text for title in root.findall("s:rect/s:title", space)]
    assert "weights: 8.0 GiB" in told
    assert "uncertain: 256.0 MiB" in told
    assert any("qwen3-8b: 2 devices" in (text.text or "") for text in root.findall("s:text", space))
    widths = [
        float(rect.attrib["width"]) for rect in root.findall("s:rect", space) if rect.find("s:title", space) is not None
    ]
    assert sum(widths) == pytest.approx(3 * 760, abs=0.1)  # the devices' bar, and two of hosts


def test_a_comparison_says_where_ranks_have_whole_experts(ctl: Invoke, plans: dict[str, Planned]) -> None:
    whole = replace(ON_TWO, deployment="m", placement=Placement("cuda", tensor=2, pipeline=2, experts=True))
    plans["m"] = replace(TWO, plan=whole)
    done = ctl("plan", "--compare", "qwen3-8b", "/m.gguf", env={"COLUMNS": "200"})
    line = next(line for line in done.stdout.splitlines() if line.startswith("parallelism"))
    assert re.split(r"\s{2,}", line) == ["parallelism", "tensor 2", "tensor 2 with whole experts x pipeline 2"]


@pytest.mark.usefixtures("plans")
def test_a_comparison_fails_only_where_nothing_fits(ctl: Invoke, tmp_path: Path) -> None:
    spec = tmp_path / "large.yaml"
    spec.write_text("name: large\nmodel: /large.gguf\n")
    assert ctl("plan", "--compare", "/m.gguf", spec).exit_code == Exit.OK
    done = ctl("plan", "--compare", "/large.gguf", spec)
    assert done.exit_code == Exit.PRECONDITION
    assert done.stdout.splitlines()[1].split() == ["verdict", *(["does", "not", "fit", "by", "3.0", "GiB"] * 2)]


@pytest.mark.parametrize("words", ["--compare m.gguf", "--compare -f one.yaml", "one.yaml --name n"])
def test_what_cannot_be_compared_is_wrong_usage(
    ctl: Invoke, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("name: a\nmodel: /a\n")
    assert ctl("plan", *words.split()).exit_code == Exit.USAGE


def test_a_name_of_the_catalog_is_planned_with_its_task(ctl: Invoke, served: Served) -> None:
    asked: list[dict[str, Any]] = []

    async def plan(spec: dict[str, Any], hardware: object) -> Planned:
        asked.append(spec)
        return ONE

    served.node.plan = plan  # type: ignore[method-assign, assignment]
    assert ctl("plan", "BGE-M3", "--context", "512").exit_code == Exit.OK
    assert asked == [
        {"name": "bge-m3", "model": "hf:BAAI/bge-m3", "task": "embedding", "workload": {"context_tokens": 512}}
    ]
    done = ctl("plan", "qwen9")
    assert (done.exit_code, done.stderr) == (
        Exit.NOT_FOUND, "error: the catalog has no model 'qwen9'\nhint: did you mean Qwen3-8B?\n"
    )  # fmt: skip


def test_a_cache_that_is_too_small_for_all_says_what_is_left_for_each() -> None:
    tight = replace(ON_TWO, capacity=Capacity(GIB, 21_264, 1.1, assured=False, doubt="it is tight"))
    assert holds(tight) == (
        "21264 tokens of cache: 1.1 requests of 8192 tokens at the same time, or 4 of 5316; not assured"
    )
    assert holds(PLAN) == ""


def test_colours_are_for_terminals_and_follow_the_kinds() -> None:
    bar = Bar("one", 4, ((Kind.WEIGHTS, 3), (Kind.FREE, 1)))
    drawn = bars.picture(bar)
    assert click.style("█", fg="blue")[:5] in drawn
    assert (
        len(click.unstyle(drawn).splitlines()[1]) == len(re.findall("[█·]", click.unstyle(drawn).splitlines()[1])) + 2
    )


@given(
    st.lists(st.tuples(st.sampled_from(Kind), st.integers(1, 10**15)), min_size=1, max_size=7, unique_by=lambda p: p[0])
)
def test_a_bar_is_as_wide_as_the_terminal_and_shows_every_part(parts: list[tuple[Kind, int]]) -> None:
    cells = bars._cells([count for _, count in parts], 78)
    assert sum(cells) == 78
    assert min(cells) >= 1


@given(st.text(max_size=40), st.lists(st.tuples(st.sampled_from(Kind), st.integers(1, 10**15)), max_size=7))
def test_a_drawing_of_anything_is_valid_xml(title: str, parts: list[tuple[Kind, int]]) -> None:
    ET.fromstring(svg.drawing(title, [Bar(title, 1, tuple(parts))]))


# fit


def _fit(
    id: str, verdict: FitVerdict, parameters: int, size: int = GIB, missing: int | None = None
) -> pb.FitCatalogResponse:
    found = pb.FitCatalogResponse(
        verdict=int(list(FitVerdict).index(verdict)) + 1, size_bytes=size, missing_bytes=missing
    )  # type: ignore[arg-type]
    found.model.name, found.model.parameter_count = f"models/a/{id}", parameters
    return found


def test_the_best_is_whole_on_devices_then_larger_then_more_precise() -> None:
    expected = [
        _fit("whole-large", FitVerdict.FITS, 8 * 10**9),
        _fit("whole-precise", FitVerdict.FITS, 10**9, 2 * GIB),
        _fit("whole-a", FitVerdict.FITS, 10**9),
        _fit("whole-b", FitVerdict.FITS, 10**9),
        _fit("unsure", FitVerdict.UNSURE, 70 * 10**9),
        _fit("partly", FitVerdict.PARTLY, 70 * 10**9),
        _fit("cpu", FitVerdict.ON_CPU, 400 * 10**9),
        _fit("nearly", FitVerdict.DOES_NOT_FIT, 10**12, missing=1),
        _fit("far", FitVerdict.DOES_NOT_FIT, 2 * 10**12, missing=GIB),
        _fit("never", FitVerdict.NOT_SERVED, 10**12),
    ]
    assert best_first(reversed(expected)) == expected


@pytest.fixture
def catalog(served: Served) -> list[Fit]:
    models = [make_model("Qwen/Qwen3-8B"), make_model("BAAI/bge-m3", task="embedding"), make_model("them/Large")]
    served.node.fits = [
        make_fit(models[2], 1, 3), make_fit(models[1], 2, 3, ONE), make_fit(models[0], 3, 3, TWO),
    ]  # fmt: skip
    return served.node.fits


@pytest.mark.usefixtures("catalog")
@pytest.mark.parametrize(("name", "words"), [("fit.table", []), ("fit.wide", ["--all", "-o", "wide"])])
def test_what_fits_is_shown_as_it_was(ctl: Invoke, name: str, words: list[str]) -> None:
    done = ctl("fit", *words)
    assert (done.exit_code, done.stdout) == (0, (GOLDEN / name).read_text())
    assert ("1 of 3 models do not fit" in done.stderr) == (not words)


def test_a_fit_is_asked_with_the_workload_and_the_hardware(ctl: Invoke, served: Served, catalog: list[Fit]) -> None:
    words = ["--task", "chat", "--concurrency", "4", "--context", "8192", "--aim", "latency", "--hardware", "rtx4090"]
    found = json.loads(ctl("fit", *words, "-o", "json").stdout)["models"]
    workload = {"concurrency": 4, "context_tokens": 8192, "aim": "latency"}
    assert (served.node.fit_template, served.node.planned_for) == (
        {"task": "chat", "workload": workload}, {"short": "rtx4090"}
    )  # fmt: skip
    assert [one["model"]["id"] for one in found] == ["Qwen3-8B", "bge-m3"]
    assert (found[0]["requests"], found[0]["device_bytes"]) == (107.6, 140 * GIB)


def test_a_fit_may_be_asked_by_those_who_may_only_look(invoke: Invoke, served: Served, catalog: list[Fit]) -> None:
    assert invoke("--socket", str(served.readonly.path), "fit").exit_code == Exit.OK


@pytest.mark.parametrize(
    ("number", "said"),
    [(596_049_920, "596M"), (8_190_735_360, "8.2B"), (671 * 10**9, "671B"), (999_885_952, "1.0B"), (12, "12")],
)
def test_parameters_are_counted_as_people_say_them(number: int, said: str) -> None:
    assert count(number) == said
