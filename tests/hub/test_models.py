"""What a reference means that the catalog does not know: the hub is asked, within the policy, and only where nothing
here says it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.artifacts.base import ArtifactError, SourcePolicy
from agent.artifacts.cache import Kept as Whole
from agent.artifacts.cache import digest_of, identify, repository, write
from agent.models import hub as client
from agent.models import inspect, profiles, remote
from agent.models.errors import ProfileError
from agent.models.profile import Basis
from agent.models.profiles import Profiles
from agent.models.repository import Bounds, Question
from agent.settings import FetchConfig, ModelVariants
from agent.status import Diagnosis, DiagnosisCode
from agent.supervision import hub as asking
from agent.supervision.hub import Meaning
from agent.supervision.models import Models
from tests.gguf_factory import make_gguf
from tests.hub.repos import Repo
from tests.hub.server import Fault, Hub, too_many
from tests.models.safetensors_factory import header_of

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
}  # fmt: skip
QUANTIZED = {"base_model": "org/tiny", "base_model_relation": "quantized"}
FP8 = {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers are read in this process, for speed; nobody is worth waiting for, no proxy or setting of the machine is
    meant."""

    async def ask(form: Any, arguments: Sequence[str], _: str, variables: Mapping[str, str]) -> Any:
        if not arguments[0].startswith("--"):
            return form().validate_python(await asyncio.to_thread(inspect.main, Path(arguments[0])))
        data = json.loads(arguments[1])
        read = {"--hub": inspect.main_hub, "--quantized": inspect.main_quantized}[arguments[0]]
        question = Question(**{**data, "bounds": Bounds(**data["bounds"])})
        found: Any = await asyncio.to_thread(read, question, variables.get("HF_TOKEN", ""))
        if "code" in found:
            raise ProfileError(Diagnosis(DiagnosisCode(found["code"]), found["message"], hint=found["hint"]))
        return form().validate_json(json.dumps(found))

    monkeypatch.setattr(profiles, "_inspect", lambda form, arguments, label, given=(): ask(
        form, arguments, label, dict(given)))  # fmt: skip
    monkeypatch.setattr(client, "_PAUSES", (0.01, 0.02))
    for name in (*profiles._NETWORK, "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gguf(tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """Files of a repository with a level each."""

    def make(*levels: str, **shape: Any) -> dict[str, bytes]:
        kinds = {"Q8_0": "Q8_0", "Q4_K_M": "Q4_0"}
        folder = tmp_path / "made"
        folder.mkdir(exist_ok=True)
        found = {}
        for level in levels:
            make_gguf(path := folder / f"tiny-{level}.gguf", quantization=kinds.get(level, "F16"), **shape)
            found[path.name] = path.read_bytes()
        return found

    return make


def stored(**config: Any) -> dict[str, bytes]:
    """A model of one safetensors file."""
    kind = "F8_E4M3" if "quantization_config" in config else "BF16"
    shapes = {"model.embed_tokens.weight": ("BF16", (512, 64)), "lm_head.weight": ("BF16", (512, 64))}
    for index in range(2):
        for part in ("q_proj", "o_proj"):
            shapes[f"model.layers.{index}.self_attn.{part}.weight"] = (kind, (64, 64))
    entries, size = header_of(shapes)
    text = json.dumps(entries).encode()
    weights = len(text).to_bytes(8, "little") + text + bytes(size)
    return {"config.json": json.dumps({**CONFIG, **config}).encode(), "model.safetensors": weights}


def models(
    hub: Hub | str, cache: Path, *, variants: ModelVariants = "known", offline: bool = False, **policy: Any
) -> Models:
    endpoint = hub if isinstance(hub, str) else hub.endpoint
    fetching = FetchConfig(endpoint=endpoint, offline=offline)
    sources = SourcePolicy(frozenset({"hf"}), None, cache / "cache", fetching=fetching, **policy)
    return Models(cache / "models.yaml", Profiles(), sources, variants)


async def refusal(known: Models, reference: str) -> Diagnosis:
    try:
        await known.options(reference)
    except (ProfileError, ArtifactError) as error:
        return error.diagnosis
    raise AssertionError(f"{reference} was not refused")


def shown(meaning: Meaning) -> list[tuple[str, str, str]]:
    return [(option.source, option.profile.quantization, option.trust) for option in meaning.options]


def left(meaning: Meaning) -> dict[str, tuple[str, str]]:
    return {one.candidate: (one.code, one.sentence) for one in meaning.left_out}


def at(repo: Repo, level: str = "") -> str:
    return f"hf:{repo.name}@{repo.refs['main']}" + (f":{level}" if level else "")


# One repository


async def test_a_repository_of_safetensors_is_one_option_at_its_commit(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repo("org/tiny", stored())
    (option,) = (await models(hub, tmp_path).options("org/tiny")).options
    assert (option.source, option.trust, option.profile.path) == (at(repo), "maker", "org/tiny")
    assert (option.profile.basis, option.profile.quantization) == (Basis.TENSORS, "bf16")


async def test_each_level_of_gguf_is_an_option_whose_reference_names_its_file(
    hub: Hub, gguf: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    files = gguf("Q8_0", "Q4_K_M")
    copies = {"copy/tiny-Q8_0.gguf": files["tiny-Q8_0.gguf"], "tiny-Q5_K_M.gguf": b"GGUF"}
    repo = hub.repo("org/tiny-GGUF", {"config.json": b"{}", **files, **copies}, card={"base_model": "other/tiny"})
    meaning = await models(hub, tmp_path).options("org/tiny-GGUF")
    assert [(option.source, option.profile.path, option.trust) for option in meaning.options] == [
        (at(repo, "Q4_K_M"), "org/tiny-GGUF/tiny-Q4_K_M.gguf", "community"),
        (at(repo, "Q8_0"), "org/tiny-GGUF/copy/tiny-Q8_0.gguf", "community"),
    ]
    sentences = [one.sentence for one in meaning.left_out]
    assert any("tiny-Q5_K_M.gguf" in sentence for sentence in sentences)
    assert f"tiny-Q8_0.gguf is another file that {at(repo, 'Q8_0')} could name" in sentences
    (one,) = (await models(hub, tmp_path).options("org/tiny-GGUF:q8_0")).options
    assert one.source == at(repo, "Q8_0")


async def test_a_revision_of_a_model_of_the_catalog_is_read_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repo("Qwen/Qwen3-0.6B", stored())
    repo.refs["v2"] = repo.refs["main"]
    repo.commit({"config.json": b"damaged"})
    known = models(hub, tmp_path)
    (option,) = (await known.options("Qwen/Qwen3-0.6B@v2")).options
    assert option.source == f"hf:Qwen/Qwen3-0.6B@{repo.refs['v2']}"
    asked = len(hub.requests)
    assert len((await known.options("Qwen/Qwen3-0.6B@main")).options) > 2
    assert len(hub.requests) == asked


async def test_a_level_that_the_catalog_does_not_list_is_looked_for_in_its_repository(
    hub: Hub, gguf: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    content = gguf("Q8_0")["tiny-Q8_0.gguf"]
    repo = hub.repo("unsloth/Qwen3-8B-GGUF", {"Qwen3-8B-UD-Q9_X.gguf": content})
    (option,) = (await models(hub, tmp_path).options("unsloth/Qwen3-8B-GGUF:UD-Q9_X")).options
    assert (option.source, option.trust) == (at(repo, "UD-Q9_X"), "maker")
    found = await refusal(models(hub, tmp_path), "unsloth/Qwen3-8B-GGUF:Q7_7")
    assert (found.code, found.message) == ("model_missing", "hf:unsloth/Qwen3-8B-GGUF has no variant Q7_7")
    assert found.hint.startswith("of Qwen/Qwen3-8B the catalog has bf16, fp8-block, awq")


# Quantized forms of a model


@pytest.fixture
def family(hub: Hub, gguf: Callable[..., dict[str, bytes]]) -> dict[str, Repo]:
    """A model, and others' forms of it."""
    levels = gguf("Q4_K_M", "Q8_0")
    forms: dict[str, tuple[dict[str, bytes], int, tuple[str, ...]]] = {
        "org/tiny-FP8": (stored(**FP8), 10, ("fp8",)),
        "unsloth/tiny-GGUF": (levels, 50, ()),
        "RedHatAI/tiny-FP8-dynamic": (stored(**FP8), 5, ("fp8",)),
        "someone/tiny-GGUF": (levels, 900, ()),
        "unsloth/tiny-exl2": (stored(), 70, ("exl2",)),
        "unsloth/tiny-onnx": ({"model.onnx": b"x"}, 60, ("onnx",)),
    }
    hub.repo("org/tiny", stored(), card={"license": "mit"})
    return {
        name: hub.repo(name, files, card=QUANTIZED, downloads=downloads, tags=tags)
        for name, (files, downloads, tags) in forms.items()
    }


async def test_forms_of_those_that_are_trusted_are_options_and_the_others_are_named(
    hub: Hub, family: dict[str, Repo], tmp_path: Path
) -> None:
    meaning = await models(hub, tmp_path).options("org/tiny")
    assert shown(meaning) == [
        (at(hub.repos["org/tiny"]), "bf16", "maker"),
        (at(family["org/tiny-FP8"]), "fp8", "maker"),
        (at(family["unsloth/tiny-GGUF"], "Q4_K_M"), "Q4_0", "community"),
        (at(family["unsloth/tiny-GGUF"], "Q8_0"), "Q8_0", "community"),
        (at(family["RedHatAI/tiny-FP8-dynamic"]), "fp8", "vendor"),
    ]
    assert left(meaning) == {
        "hf:unsloth/tiny-exl2, hf:unsloth/tiny-onnx": ("format", "no engine that the agent knows reads its format"),
        "hf:someone/tiny-GGUF": ("policy", "policy.model_variants is known: its publisher is none of those"),
    }
    assert not hub.asked("*someone*") + hub.asked("*onnx*")


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ("named", {"org/tiny"}),
        ("maker", {"org/tiny", "org/tiny-FP8"}),
        ("any", {"org/tiny", "org/tiny-FP8", "unsloth/tiny-GGUF", "RedHatAI/tiny-FP8-dynamic", "someone/tiny-GGUF"}),
    ],
)
async def test_the_policy_says_whose_forms_are_looked_at(
    hub: Hub, family: dict[str, Repo], tmp_path: Path, variants: ModelVariants, expected: set[str]
) -> None:
    meaning = await models(hub, tmp_path, variants=variants).options("org/tiny")
    assert {option.source[3:].partition("@")[0] for option in meaning.options} == expected
    assert bool(hub.asked("/api/models")) == (variants != "named")


async def test_organisations_that_are_not_allowed_are_not_read(
    hub: Hub, family: dict[str, Repo], tmp_path: Path
) -> None:
    known = models(hub, tmp_path, organisations=frozenset({"org", "qwen"}))
    meaning = await known.options("org/tiny")
    assert {option.trust for option in meaning.options} == {"maker"}
    assert ("policy", "policy.model_organisations does not allow its publisher") in left(meaning).values()
    asked = len(hub.requests)
    found = await refusal(known, "someone/tiny-GGUF")
    assert (found.code, "model_organisations" in found.hint) == ("policy_denied", True)
    listed = await known.options("Qwen/Qwen3-8B")
    assert {option.source.partition("/")[0] for option in listed.options} == {"hf:Qwen"}
    assert {code for code, _ in left(listed).values()} == {"policy"}
    found = await refusal(known, "unsloth/Qwen3-8B-GGUF")
    assert (found.code, len(hub.requests)) == ("policy_denied", asked)


async def test_a_form_that_cannot_be_read_or_is_of_another_model_is_named_and_spoils_nothing(
    hub: Hub, gguf: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    hub.repo("org/tiny", stored())
    hub.repo("org/other-GGUF", gguf("Q8_0", layers=3), card=QUANTIZED)
    hub.repo("org/closed-AWQ", stored(**FP8), card=QUANTIZED, gated="manual", tags=("awq",))
    hub.repo("org/broken-FP8", {"model.safetensors": b"x", "config.json": b"["}, card=QUANTIZED, tags=("fp8",))
    meaning = await models(hub, tmp_path).options("org/tiny")
    assert [option.profile.quantization for option in meaning.options] == ["bf16"]
    reasons = left(meaning)
    assert reasons["hf:org/other-GGUF"] == (
        "another-model", "it is another model: 3 layers of width 64, not 2 of 64",
    )  # fmt: skip
    assert reasons["hf:org/closed-AWQ"][0] == reasons["hf:org/broken-FP8"][0] == "not-read"
    assert "only to who was granted access" in reasons["hf:org/closed-AWQ"][1]


async def test_few_are_read_and_few_of_a_format(hub: Hub, tmp_path: Path) -> None:
    hub.repo("org/tiny", stored())
    for number in range(4):
        hub.repo(f"org/tiny-FP8-{number}", stored(**FP8), card=QUANTIZED, tags=("fp8",), downloads=number)
    meaning = await models(hub, tmp_path).options("org/tiny")
    assert [option.source.partition("@")[0] for option in meaning.options[1:]] == [
        "hf:org/tiny-FP8-3", "hf:org/tiny-FP8-2",
    ]  # fmt: skip
    assert left(meaning) == {
        "hf:org/tiny-FP8-1, hf:org/tiny-FP8-0": ("not-read", "was not read: others come first"),
    }


async def test_a_form_that_is_slow_holds_up_nobody(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "READ", Bounds(seconds=0.2))
    hub.repo("org/tiny", stored())
    hub.repo("org/tiny-FP8", stored(**FP8), card=QUANTIZED, tags=("fp8",))
    hub.fail(Fault("/api/models/org/tiny-FP8/*", stall_at=0))
    meaning = await models(hub, tmp_path).options("org/tiny")
    assert len(meaning.options) == 1
    assert left(meaning) == {"hf:org/tiny-FP8": ("not-read", "it could not be read within 0.2 s")}
    hub.stopping.set()  # the thread that still listens may end


async def test_that_there_are_more_forms_than_are_listed_is_said(
    hub: Hub, family: dict[str, Repo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_MOST_LISTED", 1)
    meaning = await models(hub, tmp_path, variants="any").options("org/tiny")
    assert {option.source.partition("@")[0] for option in meaning.options} == {"hf:org/tiny", "hf:someone/tiny-GGUF"}
    assert left(meaning) == {"hf:org/tiny": ("not-listed", "the hub lists more quantized forms of it")}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("/api/models", status=404, body=b"{}"), "does not exist"),
        (Fault("/api/models", body=b"<html>"), "no JSON list"),
        (Fault("/api/models", body=b'[{"id": "../../etc"}]'), "lists a quantized form of hf:org/tiny as"),
        (Fault("/api/models", status=500, body=b""), "answers with status 500"),
    ],
)
async def test_a_mirror_without_a_listing_costs_the_others_only(
    hub: Hub, tmp_path: Path, fault: Fault, words: str
) -> None:
    hub.repo("org/tiny", stored())
    hub.fail(fault)
    meaning = await models(hub, tmp_path).options("org/tiny")
    assert len(meaning.options) == 1
    (code, sentence) = left(meaning)["hf:org/tiny"]
    assert (code, words in sentence) == ("not-listed", True), sentence


async def test_what_is_a_form_itself_or_a_revision_has_none(hub: Hub, family: dict[str, Repo], tmp_path: Path) -> None:
    known = models(hub, tmp_path)
    for reference in ("org/tiny-FP8", "unsloth/tiny-GGUF", f"org/tiny@{hub.repos['org/tiny'].refs['main']}"):
        await known.options(reference)
    assert not hub.asked("/api/models")


# Refusals


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault("*/resolve/*", status=403, headers={"X-Error-Code": "GatedRepo"}, body=b""), "model_gated", "granted"),
        (Fault(status=404, body=b""), "model_missing", "does not exist"),
        (too_many(7200, times=99), "source_unavailable", "it asks to wait 7200 s"),
        (Fault(status=503, body=b""), "source_unavailable", "status 503"),
        (Fault(body=b"garbage"), "source_unavailable", "no JSON object"),
    ],
)
async def test_what_the_hub_refuses_is_refused(hub: Hub, tmp_path: Path, fault: Fault, code: str, words: str) -> None:
    hub.repo("org/tiny", stored())
    hub.fail(fault)
    found = await refusal(models(hub, tmp_path), "org/tiny")
    assert (found.code, words in found.message) == (code, True), found


async def test_a_name_that_nobody_knows_is_answered_with_the_nearest(hub: Hub, tmp_path: Path) -> None:
    found = await refusal(models(hub, tmp_path), "qwen/Qwen3-9B")
    assert found.code == "model_missing"
    assert found.hint.startswith("did you mean Qwen/Qwen3.5-9B or Qwen/Qwen3-8B")


async def test_offline_the_hub_is_not_asked_and_the_field_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.repo("org/tiny", stored())
    known = models(hub, tmp_path, offline=True)
    for reference, words in {
        "org/tiny": "the catalog has no model org/tiny",
        "Qwen/Qwen3-8B@v2": "the catalog knows no revisions of Qwen/Qwen3-8B",
        "Qwen/Qwen3-8B:Q7_7": "the catalog knows no variant Q7_7 of Qwen/Qwen3-8B",
    }.items():
        found = await refusal(known, reference)
        assert (found.code, "fetch.offline" in found.hint) == ("model_missing", True)
        assert found.message == f"{words}, and the hub may not be asked: offline"
    assert not hub.requests


# What is here


def bring(cache: Path, repo: Repo, level: str = "", file: str = "") -> Path:
    """Put a variant into the cache as fetching does."""
    folder, commit = repository(cache / "cache", repo.name), repo.refs["main"]
    names = [file] if file else list(repo.commits[commit])
    kept = []
    for name in names:
        content = repo.commits[commit][name]
        blob, link = folder.blobs / content.sha256, folder.snapshot(commit) / name
        for directory in (blob.parent, link.parent):
            directory.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(b"".join(content.pieces(0, content.size)))
        link.symlink_to(os.path.relpath(blob, link.parent))
        kept.append(identify(blob, name, f"sha256:{content.sha256}"))
    path = folder.snapshot(commit) / file
    write(folder, Whole(f"hf:{repo.name}", repo.name, commit, level, path, digest_of(tuple(kept)), tuple(kept)))
    return path


async def test_while_a_variant_is_here_what_was_planned_from_stays_and_nobody_is_asked(
    hub: Hub, family: dict[str, Repo], tmp_path: Path
) -> None:
    first = await models(hub, tmp_path).options("org/tiny")
    bring(tmp_path, family["unsloth/tiny-GGUF"], "Q4_K_M", "tiny-Q4_K_M.gguf")
    hub.repos["org/tiny"].commit({"config.json": b"{}"})
    asked = len(hub.requests)
    assert await models(hub, tmp_path).options("org/tiny") == first
    assert await models(hub, tmp_path, offline=True).options("org/tiny") == first
    assert len(hub.requests) == asked


async def test_once_no_variant_is_here_the_hub_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repo("org/tiny", stored())
    await models(hub, tmp_path).options("org/tiny")
    repo.commit({"README.md": b"changed"})
    (option,) = (await models(hub, tmp_path).options("org/tiny")).options
    assert option.source == at(repo)


async def test_an_answer_that_was_damaged_on_the_disk_is_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repo("org/tiny", stored())
    first = await models(hub, tmp_path).options("org/tiny")
    bring(tmp_path, repo)
    (kept,) = (tmp_path / "cache" / "answers").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert await models(hub, tmp_path).options("org/tiny") == first


async def test_files_of_exactly_this_reference_answer_for_themselves(
    hub: Hub, gguf: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    repo = hub.repo("org/tiny-GGUF", gguf("Q8_0"))
    path = bring(tmp_path, repo, "Q8_0", "tiny-Q8_0.gguf")
    (option,) = (await models(hub, tmp_path).options(at(repo, "Q8_0").removeprefix("hf:"))).options
    assert (option.source, option.profile.path) == (at(repo, "Q8_0"), str(path))
    assert option.digest.startswith("sha256:")
    assert not hub.requests


@pytest.mark.parametrize("offline", [True, False])
async def test_what_the_hubs_own_tools_brought_is_planned_where_the_hub_cannot_be_asked(
    hub: Hub, tmp_path: Path, offline: bool
) -> None:
    repo = hub.repo("org/tiny", stored())
    path = bring(tmp_path, repo)
    folder = repository(tmp_path / "cache", repo.name)
    (folder.path / "refs").mkdir()
    (folder.path / "refs" / "main").write_text(repo.refs["main"])
    for record in folder.records.iterdir():
        record.unlink()
    hub.fail(Fault(status=503, body=b""))
    (option,) = (await models(hub, tmp_path, offline=offline).options("org/tiny")).options
    assert (option.source, option.profile.path) == (at(repo), str(path))
    assert bool(hub.requests) != offline


async def test_as_many_answers_are_kept_as_a_node_needs(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_MOST_ANSWERS", 2)
    for number in range(4):
        hub.repo(f"org/tiny-{number}", stored())
        await models(hub, tmp_path).options(f"org/tiny-{number}")
    assert len(list((tmp_path / "cache" / "answers").iterdir())) == 2
