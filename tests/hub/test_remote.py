"""Models on a hub are profiled from ranges of their files: as exactly as local ones, and whatever the hub does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from agent.models import header, inspect, profiles
from agent.models import hub as client
from agent.models.errors import ProfileError
from agent.models.huggingface import read_folder
from agent.models.profile import Basis, ModelProfile
from agent.models.profiles import Profiles
from agent.models.repository import Bounds, Question, Repository
from agent.status import DiagnosisCode
from tests.gguf_factory import make_gguf
from tests.hub.repos import File
from tests.hub.server import Fault, Hub, redirect, too_many
from tests.models.safetensors_factory import header_of

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320, "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}  # fmt: skip
CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here is worth waiting for; proxies of this machine are not meant."""
    monkeypatch.setattr(client, "SILENCE", 0.3)
    monkeypatch.setattr(client, "_PAUSES", (0.01, 0.02))
    for name in profiles._NETWORK:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of three files, as a directory."""
    path = tmp_path_factory.mktemp("hf") / "tiny"
    path.mkdir()
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (320, 64), "lm_head.weight": (320, 64)}
    for index in range(2):
        for part, shape in {"self_attn.q_proj": (64, 64), "mlp.up_proj": (96, 64), "input_layernorm": (64,)}.items():
            shapes[f"model.layers.{index}.{part}.weight"] = shape
    names, where = list(shapes), {}
    for number in range(3):
        file, part = f"model-{number + 1:05}-of-00003.safetensors", names[number::3]
        (path / file).write_bytes(safetensors({name: shapes[name] for name in part}))
        where |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "README.md").write_bytes(CARD)
    return path


def safetensors(shapes: dict[str, tuple[int, ...]]) -> bytes:
    entries, size = header_of({name: ("BF16", shape) for name, shape in shapes.items()})
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def question(hub: Hub | str, repo: str = "org/tiny", **rest: Any) -> Question:
    bounds = rest.pop("bounds", Bounds(seconds=10))
    return Question(hub if isinstance(hub, str) else hub.endpoint, repo, bounds=bounds, **rest)


def look(hub: Hub | str, repo: str = "org/tiny", token: str = "", **rest: Any) -> Repository:
    """In this process, for speed."""
    found = inspect.main_hub(question(hub, repo, **rest), token)
    if "code" in found:
        raise AssertionError(found)
    return TypeAdapter(Repository).validate_python(found)


def refusal(hub: Hub | str, repo: str = "org/tiny", token: str = "", **rest: Any) -> tuple[str, str, str]:
    """Code, message and hint."""
    found = inspect.main_hub(question(hub, repo, **rest), token)
    assert "code" in found, found
    return str(found["code"]), str(found["message"]), str(found["hint"])


# What is read


async def test_the_profile_is_that_of_the_same_files_on_a_disk(hub: Hub, folder: Path) -> None:
    """Through the subprocess, as the daemon does it."""
    repo = hub.repo("org/tiny", files(folder), card={"base_model": ["org/base"]})
    known = Profiles()

    found = await known.remote(question(hub))

    local = read_folder(folder)
    (variant,) = found.variants
    assert replace(variant.profile, path=local.path) == local
    assert variant.profile.basis == Basis.TENSORS
    assert (variant.quantization, variant.bytes, variant.file) == ("bf16", local.file_bytes, "")
    assert (found.commit, found.base_model, found.gated) == (repo.refs["main"], "org/base", False)

    asked = len(hub.requests)
    assert await known.remote(question(hub)) is found
    assert len(hub.requests) == asked


def test_of_a_model_of_60_gb_only_headers_are_read(hub: Hub, tmp_path: Path) -> None:
    entries, size = header_of({"model.embed_tokens.weight": ("BF16", (468750000, 64))})
    text, path = json.dumps(entries).encode(), tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + size)
    described = json.dumps({**CONFIG, "model_type": "strange"}).encode()
    hub.repo("org/tiny", {"model.safetensors": File(path, digest="0" * 64), "config.json": described})

    (variant,) = look(hub).variants

    assert variant.profile.tensor_bytes == size == 60_000_000_000
    assert hub.sent < 1_000_000


def test_a_header_longer_than_the_first_read_is_read_on_and_nothing_twice(hub: Hub) -> None:
    shapes = {f"model.layers.0.mlp.experts.{number}.up_proj.weight": (64, 1) for number in range(3000)}
    content = safetensors({"model.embed_tokens.weight": (320, 64), **shapes})
    hub.repo("org/tiny", {"model.safetensors": content, "config.json": json.dumps(CONFIG).encode()})

    (variant,) = look(hub).variants

    assert variant.profile.parameters == 320 * 64 + 3000 * 64
    spans = [request.headers["range"] for request in hub.asked("/cdn/*")]
    header = int.from_bytes(content[:8], "little")
    assert spans == ["bytes=0-131071", f"bytes=131072-{7 + header}"]


def test_each_level_of_gguf_is_a_variant_and_parts_are_one(hub: Hub, tmp_path: Path) -> None:
    for level, kind in {"Q8_0": "Q8_0", "UD-Q4_K_XL": "Q4_0"}.items():
        make_gguf(tmp_path / f"tiny-{level}.gguf", quantization=kind)
    (tmp_path / "BF16").mkdir()
    make_gguf(tmp_path / "BF16" / "tiny-BF16.gguf", quantization="F16", tensors_per_part=8)
    for other in ("mmproj-F16.gguf", "imatrix_unsloth.gguf"):
        (tmp_path / other).write_bytes(b"GGUF")
    hub.repo("org/tiny", files(tmp_path), card={"license": "mit"})

    found = look(hub)

    assert [variant.quantization for variant in found.variants] == ["Q8_0", "BF16", "UD-Q4_K_XL"]
    for variant, local in zip(
        found.variants, ("tiny-Q8_0.gguf", variant_file(found, 1), "tiny-UD-Q4_K_XL.gguf"), strict=True
    ):
        here = TypeAdapter(ModelProfile).validate_python(inspect.main(tmp_path / local))
        assert replace(variant.profile, path="", licence="") == replace(here, path="")
        assert (variant.profile.licence, variant.file) == ("mit", local)
    assert variant_file(found, 1).startswith("BF16/tiny-BF16-00001-of-")

    (one,) = look(hub, variant="ud-q4_k_xl").variants
    assert one == found.variants[2]
    assert refusal(hub, variant="Q2_K") == (
        "model_missing", "hf:org/tiny has no variant Q2_K", "it has BF16, Q8_0, UD-Q4_K_XL",
    )  # fmt: skip


def variant_file(found: Repository, number: int) -> str:
    return found.variants[number].file


def test_a_long_gguf_header_is_read_in_growing_steps(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "_FIRST", 64 * 1024)
    make_gguf(tmp_path / "m-Q8_0.gguf", vocab=20_000, quantization="Q8_0")
    hub.repo("org/tiny", files(tmp_path))

    (variant,) = look(hub).variants

    assert variant.profile.vocabulary == 20_000
    spans = [request.headers["range"] for request in hub.asked("/cdn/*")]
    assert spans == ["bytes=0-131071", "bytes=131072-262143", "bytes=262144-1048575"]


def test_as_many_levels_are_read_as_asked_for_and_the_rest_is_named(hub: Hub, tmp_path: Path) -> None:
    make_gguf(tmp_path / "m-Q8_0.gguf", quantization="Q8_0")
    content = (tmp_path / "m-Q8_0.gguf").read_bytes()
    named = {f"m-{level}.gguf": content for level in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q8_0")}
    hub.repo("org/tiny", {**named, "m-Q5_K_M.gguf": b"GGUF" + bytes(100)})

    found = look(hub, bounds=Bounds(levels=2))

    assert [variant.quantization for variant in found.variants] == ["Q4_K_M", "Q8_0"]
    damaged, *others = found.left_out
    assert "m-Q5_K_M.gguf: its header is damaged" in damaged
    assert others == [f"m-{level}.gguf was not read: others come first" for level in ("Q3_K_M", "Q2_K")]


def test_a_level_more_is_read_only_while_half_of_the_bytes_is_left(hub: Hub, tmp_path: Path) -> None:
    for level in ("Q8_0", "F16"):
        make_gguf(tmp_path / f"m-{level}.gguf", quantization=level)
    hub.repo("org/tiny", {**files(tmp_path), "config.json": json.dumps(CONFIG).encode()})

    found = look(hub, bounds=Bounds(bytes=256 * 1024))

    assert [variant.quantization for variant in found.variants] == ["Q8_0"]
    assert found.left_out == ("m-F16.gguf was not read: others come first",)


def test_a_repository_without_weights_is_counted_and_pickles_are_named(hub: Hub) -> None:
    hub.repo("org/tiny", {"config.json": json.dumps(CONFIG).encode(), "pytorch_model.bin": bytes(1000)})

    (variant,) = look(hub).variants

    assert (variant.profile.format, variant.profile.basis, variant.bytes) == ("pytorch", Basis.CONFIG, 1000)
    assert not hub.asked("*.bin")


def test_a_revision_is_read_at_its_commit_even_if_the_branch_moves_on(hub: Hub, folder: Path) -> None:
    repo = hub.repo("org/tiny", files(folder))
    first = repo.refs["v1"] = repo.refs["main"]
    repo.commit({"config.json": b"damaged"})

    assert look(hub, revision="v1").commit == first
    assert {request.path.split("/")[4] for request in hub.asked("*/resolve/*")} == {first}


def test_names_that_leave_the_repository_are_not_seen(hub: Hub, folder: Path) -> None:
    odd = ["../config.json", "/etc/passwd", "a/../../b.gguf", "x\\..\\y.gguf", "new\nline.gguf", "c//d.gguf"]
    hub.repo("org/tiny", {**files(folder), **dict.fromkeys(odd, b"GGUF")})

    assert [variant.quantization for variant in look(hub).variants] == ["bf16"]


# Tokens


def test_the_token_is_shown_to_the_hub_alone(hub: Hub, folder: Path) -> None:
    hub.tokens.add("hf_canary")
    hub.repo("org/tiny", files(folder), private=True, granted={"hf_canary"})

    look(hub, token="hf_canary")

    shown = {(request.origin, request.headers.get("authorization")) for request in hub.requests}
    assert shown == {("hub", "Bearer hf_canary"), ("cdn", None)}


async def test_the_token_is_in_no_argument_and_no_error(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repo("org/tiny", files(folder), gated="auto")
    seen, real = tmp_path / "arguments", profiles.sys.executable
    spy = tmp_path / "python"
    spy.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {seen}\nexec {real} "$@"\n')
    spy.chmod(0o755)
    monkeypatch.setattr(profiles.sys, "executable", str(spy))

    with pytest.raises(ProfileError) as caught:
        await Profiles().remote(question(hub), "hf_canary")

    assert hub.endpoint in seen.read_text()
    assert "hf_canary" not in seen.read_text() + str(caught.value.diagnosis)
    assert {request.headers["authorization"] for request in hub.requests} == {"Bearer hf_canary"}


@pytest.mark.parametrize(
    ("repo", "token", "code", "message", "hint"),
    [
        ("org/none", "", "model_missing", "hf:org/none does not exist, or may not be seen", "private"),
        ("org/none", "hf_other", "model_missing", "hf:org/none does not exist", "private"),
        ("org/private", "", "model_missing", "hf:org/private does not exist, or may not be seen", "needs a token"),
        ("org/gated", "", "model_gated", "its publisher gives it only to who was granted access", "fetch.token_file"),
        ("org/gated", "hf_other", "model_gated", "index.json of hf:org/gated", "with the token's account"),
        ("org/gated", "hf_revoked", "model_gated", "the hub does not know the token", "revoked"),
    ],
)
def test_who_may_not_read_it_is_told_why(
    repo: str, token: str, code: str, message: str, hint: str, hub: Hub, folder: Path
) -> None:
    hub.tokens |= {"hf_good", "hf_other"}
    hub.repo("org/private", files(folder), private=True, granted={"hf_good"})
    hub.repo("org/gated", files(folder), gated="manual", granted={"hf_good"})

    found = refusal(hub, repo, token)

    assert found[0] == code
    assert message in found[1]
    assert hint in found[2]
    assert look(hub, "org/gated", "hf_good").gated


def test_what_is_not_there_is_named(hub: Hub, folder: Path) -> None:
    repo = hub.repo("org/tiny", files(folder))
    assert refusal(hub, revision="nowhere")[:2] == (
        "model_missing", "hf:org/tiny@nowhere: the repository has no such revision",
    )  # fmt: skip
    repo.commit({"model-00002-of-00003.safetensors": None})
    assert "model-00002-of-00003.safetensors, one of 3 files" in refusal(hub)[1]
    hub.repo("org/tiny", {"README.md": CARD})
    assert refusal(hub)[:2] == ("model_missing", "hf:org/tiny has no config.json")


def test_a_renamed_repository_is_followed_and_called_by_its_new_name(hub: Hub, folder: Path) -> None:
    hub.repo("org/tiny", files(folder))
    hub.renamed["org/old"] = "org/tiny"

    assert look(hub, "org/old").repo == "org/tiny"


# What a hub can do


@pytest.mark.parametrize(
    "fault",
    [
        Fault("/api/*", times=2, status=503, body=b"<html>"),
        Fault("*/config.json", times=2, reset_at=0),
        Fault("/cdn/*", times=1, cut_at=100),
        Fault("/cdn/*", times=2, stall_at=50),
        too_many(0, times=2),
        Fault("*", after=3, times=1, status=500, body=b""),
    ],
    ids=["503", "reset", "cut off", "silent", "too many requests", "500 now and then"],
)
def test_what_passes_is_tried_again(fault: Fault, hub: Hub, folder: Path) -> None:
    hub.repo("org/tiny", files(folder))
    hub.fail(fault)

    assert look(hub).variants[0].bytes == read_folder(folder).file_bytes
    assert fault.seen > fault.times


def lying(change: Callable[[dict[str, Any]], object]) -> bytes:
    data: dict[str, Any] = {
        "id": "org/tiny", "sha": "a" * 40, "gated": False, "siblings": [{"rfilename": "config.json", "size": 10}],
    }  # fmt: skip
    return json.dumps(change(data) or data).encode()


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault(status=503, body=b""), "source_unavailable", "hf:org/tiny: 127.0.0.1 answers with status 503"),
        (too_many(3600, times=9), "source_unavailable", "too many requests; it asks to wait 3600 s"),
        (Fault(status=418, body=b""), "source_unavailable", "the hub answers with status 418"),
        (Fault("/api/*", body=b"<html>Welcome</html>"), "source_unavailable", "no JSON object"),
        (Fault("/api/*", body=b"[" * 200_000), "source_unavailable", "no JSON object"),
        (Fault("/api/*", body=b"[]"), "source_unavailable", "no JSON object"),
        (Fault("/api/*", body=lying(lambda data: data.pop("sha") and None)), "source_unavailable", "which commit"),
        (Fault("/api/*", body=lying(lambda d: d | {"sha": "../x"})), "source_unavailable", "sha is '../x'"),
        (Fault("/api/*", body=lying(lambda d: d | {"siblings": 3})), "source_unavailable", "siblings is no list"),
        (Fault("/api/*", body=lying(lambda d: d | {"siblings": [3]})), "source_unavailable", "lists a file"),
        (
            Fault("/api/*", body=lying(lambda d: d | {"siblings": [{"rfilename": "a", "size": -1}]})),
            "source_unavailable",
            "lists a file",
        ),
        (
            Fault("/api/*", body=lying(lambda d: d | {"siblings": [{"rfilename": str(n)} for n in range(10_001)]})),
            "model_unsupported",
            "10001 files",
        ),
        (Fault("/api/*", endless=True), "source_unavailable", "more than"),
        (Fault("*/config.json", body=b"\xff\xfe"), "model_corrupt", "the hub lists it with 235 bytes, and serves 2"),
        (Fault("/cdn/*", status=200, body=b"x" * 50, times=99), "model_corrupt", "lists it with"),
        (Fault("/cdn/*", headers={"Content-Range": "bytes 5-10/600"}), "source_unavailable", "how long the file is"),
        (Fault("*", headers={"Content-Encoding": "br"}), "source_unavailable", "is compressed"),
        (redirect("file:///etc/passwd"), "source_unavailable", "leads to 'file:///etc/passwd'"),
        (redirect("ftp://host/x"), "source_unavailable", "is no address that is followed"),
        (redirect("http://user:secret@127.0.0.1:1/"), "source_unavailable", "is no address that is followed"),
        (redirect("http://127.0.0.1:99999999/"), "source_unavailable", "is no address that is followed"),
        (redirect("/api/models/org/tiny"), "source_unavailable", "redirected more than 5 times"),
        (redirect(""), "source_unavailable", "redirected more than 5 times"),
        (Fault("/cdn/*", stall_at=20), "source_unavailable", "was silent for"),
        (Fault("/cdn/*", cut_at=20), "source_unavailable", "the connection ended after 20 of"),
        (Fault("/cdn/*", status=403, body=b""), "source_unavailable", "to which the hub redirects, answers with 403"),
        (
            Fault(status=403, headers={"X-Error-Message": "Access to this resource is disabled."}, body=b""),
            "model_missing",
            "the hub refuses it (Access to this resource is disabled.)",
        ),
    ],
)
def test_what_a_hub_should_not_do_ends_with_what_it_did(
    fault: Fault, code: str, words: str, hub: Hub, folder: Path
) -> None:
    hub.repo("org/tiny", files(folder))
    hub.fail(replace(fault))

    found = refusal(hub)

    assert found[0] == code, found
    assert words in found[1]
    assert hub.sent < 40 * 1024**2


def test_a_header_that_lies_is_refused_with_the_file_and_the_rule(hub: Hub, folder: Path) -> None:
    first = "model-00001-of-00003.safetensors"
    repo = hub.repo("org/tiny", files(folder))
    for content, words in {
        (1 << 62).to_bytes(8, "little") + b"{}": "its header claims 4611686018427387904 bytes",
        (90_000_000).to_bytes(8, "little") + b"{}": "is truncated: its header claims 90000000 bytes",
        b"<html>not found</html>": "its header claims",
    }.items():
        repo.commit({first: content})
        code, message, _ = refusal(hub)
        assert (code, first in message, words in message) == ("model_corrupt", True, True), message


def test_headers_of_more_bytes_than_any_models_are_refused(hub: Hub) -> None:
    text = b"{" + b" " * 3_000_000 + b"}"
    shards = {f"model-{n:05}-of-00004.safetensors": len(text).to_bytes(8, "little") + text for n in range(1, 5)}
    hub.repo("org/tiny", {**shards, "config.json": json.dumps(CONFIG).encode()})

    code, message, _ = refusal(hub, bounds=Bounds(bytes=8 * 1024**2))

    assert (code, "its headers have more than 8 MiB" in message) == ("model_corrupt", True)
    assert hub.sent < 16 * 1024**2


def test_a_file_that_changes_while_it_is_read_is_noticed(hub: Hub) -> None:
    shapes = {f"model.layers.0.mlp.experts.{number}.up_proj.weight": (64, 1) for number in range(3000)}
    hub.repo("org/tiny", {"model.safetensors": safetensors(shapes), "config.json": json.dumps(CONFIG).encode()})
    hub.fail(Fault("/cdn/*", after=1, etag="another"))

    code, message, _ = refusal(hub)

    assert (code, message) == ("source_unavailable", "model.safetensors of hf:org/tiny changed while it was read")


def test_a_mirror_that_ignores_ranges_serves_the_beginnings_of_files(hub: Hub, folder: Path) -> None:
    hub.repo("org/tiny", {**files(folder), "model-00001-of-00003.safetensors": padded(folder)})
    hub.fail(Fault("/cdn/*", ignore_range=True))

    assert look(hub).variants[0].profile.basis == Basis.TENSORS
    assert hub.sent < 40 * 1024**2


def padded(folder: Path) -> bytes:
    """The first file with 30 MB more of embedding: nobody shall read them."""
    header = json.loads(
        (content := (folder / "model-00001-of-00003.safetensors").read_bytes())[8:].split(b"}}")[0] + b"}}"
    )
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    assert content
    return safetensors({**shapes, "model.extra.weight": (234_375, 64)})


@pytest.mark.parametrize(
    "endpoint", ["file:///etc", "huggingface.co", "ftp://host", "http://", "https://u:p@host", "http://h/?q"]
)
def test_only_addresses_of_hubs_are_asked(endpoint: str) -> None:
    code, message, hint = refusal(endpoint)

    assert (code, "https://huggingface.co" in hint) == ("source_unavailable", True)
    assert "must be http:// or https://" in message


def test_nobody_listening_is_said(hub: Hub) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        code, message, _ = refusal(f"http://127.0.0.1:{bound.getsockname()[1]}")

    assert (code, message) == ("source_unavailable", "hf:org/tiny: 127.0.0.1 cannot be read (Connection refused)")


def test_a_proxy_of_the_environment_is_used(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub stands in for the proxy: a proxy is asked with the whole address."""
    hub.repo("org/tiny", files(folder))
    monkeypatch.setenv("http_proxy", hub.endpoint.replace("http://", "http://me:word@"))

    monkeypatch.setenv("no_proxy", "127.0.0.1")

    look("http://hub.invalid")

    asked = {
        (request.headers["proxy-authorization"], request.headers["host"])
        for request in hub.asked("[!c]*")
        if request.origin == "hub"
    }
    assert asked == {("Basic bWU6d29yZA==", "hub.invalid")}


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """For 127.0.0.1, with its key, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    path = tmp_path / "hub.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path) + ".key"]
    subprocess.run(["openssl", "req", "-x509", *key, "-out", path, *subject], check=True, capture_output=True)
    return path


async def test_https_is_trusted_by_the_environments_authorities_and_never_left(
    certificate: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")
    with Hub(context) as hub:
        hub.repo("org/tiny", files(folder))
        with pytest.raises(ProfileError, match=r"127\.0\.0\.1 is not trusted \(self-signed certificate\)"):
            await Profiles().remote(question(hub))

        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert (await Profiles().remote(question(hub))).variants[0].quantization == "bf16"

        hub.fail(redirect("http://127.0.0.1:9/", path="*/resolve/*"))
        with pytest.raises(ProfileError, match="redirects from https to what is not https"):
            await Profiles().remote(question(hub))


async def test_a_hub_that_sends_a_byte_now_and_then_is_given_up(hub: Hub, folder: Path) -> None:
    """The head of an answer may drip for ever without a silence: the subprocess has an alarm."""
    hub.repo("org/tiny", files(folder))
    hub.fail(Fault("/cdn/*", drip_seconds=0.1))

    with pytest.raises(ProfileError) as caught:
        await Profiles().remote(question(hub, bounds=Bounds(seconds=1.5)))

    assert caught.value.diagnosis.code == DiagnosisCode.SOURCE_UNAVAILABLE
    assert "did not finish within 1.5 s" in caught.value.diagnosis.message


async def test_a_process_that_hangs_is_killed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(profiles.sys, "executable", str(hanging))
    monkeypatch.setattr(profiles, "_MARGIN", 0.1)

    with pytest.raises(ProfileError) as caught:
        await Profiles().remote(question(hub, bounds=Bounds(seconds=0.1)))

    assert caught.value.diagnosis.code == DiagnosisCode.SOURCE_UNAVAILABLE


@pytest.fixture
def garbage() -> Iterator[str]:
    """A server that answers no HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(range(256)))
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_what_speaks_no_http_is_said_to(garbage: str) -> None:
    code, message, _ = refusal(garbage)

    assert (code, "cannot be read" in message) == ("source_unavailable", True)
