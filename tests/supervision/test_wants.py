"""Who wants which artifacts: by the plan's very files, or without a plan by the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.artifacts import cache, holdings
from agent.artifacts.base import SourcePolicy
from agent.artifacts.sources import REMOTE
from agent.planning.plan import Variant
from agent.supervision import wants
from agent.supervision.wants import Want
from tests.cache_factory import keep

C1, C2 = "1" * 40, "2" * 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two commits of one level, another level, and the rest of a pull."""
    keep(tmp_path, "Ours/Model-GGUF", C1, "Q4", {"q4.gguf": b"one"})
    keep(tmp_path, "Ours/Model-GGUF", C2, "Q4", {"q4.gguf": b"two"})
    keep(tmp_path, "Ours/Model-GGUF", C2, "Q8", {"q8.gguf": b"three"})
    keep(tmp_path, "ours/other", C1, "", {"config.json": b"{}"})
    for name in ("d.incomplete", "d.incomplete.parts"):
        (cache.repository(tmp_path, "Ours/Model-GGUF").blobs / name).write_bytes(b"part")
    return tmp_path


def wanted(root: Path, *found: Want) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Users and those who desire it, of each holding with any."""
    held = holdings.scan(root)
    interests = wants.interests(root, held, found)
    names = {one.key: wants.reference(one) + (f"@{one.kept.commit[0]}" if one.kept else " rest") for one in held}
    return {names[key]: (one.used, one.desired) for key, one in interests.items() if one.used or one.desired}


def variant(path: Path) -> Variant:
    return Variant("hf:ours/model-gguf:Q4", str(path), "gguf", "Q4", 3, "llama")


def test_a_plan_wants_its_very_files(root: Path) -> None:
    path = cache.repository(root, "Ours/Model-GGUF").snapshot(C1) / "q4.gguf"
    runs = Want("chat", "hf:ours/model-gguf:Q4", True, variant(path))
    plans = Want("chat", "hf:ours/model-gguf:Q4", False, variant(path))
    assert wanted(root, runs, plans) == {"hf:Ours/Model-GGUF:Q4@1": (("chat",), ("chat",))}


@pytest.mark.parametrize(
    "reference", ["hf:ours/model-gguf", "hf:OURS/Model-GGUF:Q8", "hf:Ours/Model-GGUF@main:Q4", "path"]
)
def test_without_a_plan_all_of_the_repository_is_wanted_whatever_its_case(root: Path, reference: str) -> None:
    if reference == "path":  # somebody names a file inside of the cache
        reference = f"file:{cache.repository(root, 'Ours/Model-GGUF').snapshot(C1)}/q4.gguf"
    assert wanted(root, Want("chat", reference, False)) == dict.fromkeys(
        ["hf:Ours/Model-GGUF:Q4@1", "hf:Ours/Model-GGUF:Q4@2", "hf:Ours/Model-GGUF:Q8@2", "hf:Ours/Model-GGUF rest"],
        ((), ("chat",)),
    )


def test_a_plan_whose_files_are_still_fetched_wants_what_is_there_of_them(root: Path) -> None:
    plan = Want("chat", "hf:Ours/Model-GGUF:Q5", False, variant(Path("Ours/Model-GGUF/q5.gguf")))
    assert "hf:Ours/Model-GGUF rest" in wanted(root, plan)
    assert "hf:ours/other@1" not in wanted(root, plan)


@pytest.mark.parametrize(
    "reference", ["file:/models/x.gguf", "package:them/x.gguf", "hf:no", "https://h/x.gguf", "odd"]
)
def test_others_want_nothing_of_the_cache(root: Path, reference: str) -> None:
    assert wanted(root, Want("chat", reference, False)) == {}


def test_what_lies_elsewhere_is_shown_once_for_all_who_use_it(root: Path) -> None:
    elsewhere = Variant("file:/m.gguf", "/m.gguf", "gguf", "Q4", 3, "llama", "sha256:ab")
    inside = variant(root / "hub" / "x" / "y.gguf")
    wishes = [
        Want("a", elsewhere.source, True, elsewhere), Want("a", elsewhere.source, False, elsewhere),
        Want("b", elsewhere.source, False, elsewhere), Want("c", inside.source, True, inside),
        Want("d", "hf:a/b", False),
    ]  # fmt: skip
    found = list(wants.external(root, wishes))
    assert [(one.path, one.used_by, one.desired_by, one.digest) for one in found] == [
        ("/m.gguf", ("a",), ("a", "b"), "sha256:ab")
    ]


@pytest.mark.parametrize(
    "reference",
    [
        f"s3://bucket/m.gguf#sha256={'1' * 64}", "gs://bucket/directory", "oci:docker.io/ai/m:v1", "ollama:m:1b",
        "ollama:owner/m", "ms:owner/name@v1:Q4_K_M",
    ],
)  # fmt: skip
def test_files_of_other_sources_are_wanted_where_they_are_fetched_to(tmp_path: Path, reference: str) -> None:
    scheme, _, rest = reference.partition(":")
    job = REMOTE[scheme].job(rest, SourcePolicy(frozenset({scheme}), None, tmp_path))

    assert wants.folder_of(tmp_path, reference) == job.folder.path
    assert job.folder.path.is_relative_to(tmp_path / scheme)
