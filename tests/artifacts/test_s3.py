"""Fetching from S3: moto's server, a process of its own, asked with botocore's signatures and our own transfer."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.loaders
import botocore.session
import pytest
from botocore.config import Config

from agent.artifacts import fetcher, partial
from agent.artifacts.base import SourcePolicy
from agent.artifacts.cache import Kept
from agent.artifacts.fetcher import Fetcher, diagnosed
from agent.artifacts.source_s3 import SOURCE
from agent.artifacts.sources import fetch, resolve
from agent.settings import FetchConfig
from agent.status import Diagnosis
from agent.status import DiagnosisCode as Code
from tests.hub.server import Fault
from tests.relay import Relay

MIB = 1024**2
BIG = random.Random(1).randbytes(4 * MIB + 123)
LOADER = botocore.loaders.create_loader()
SECRET = "canary/S3+secret+5f1e"
MODEL = {
    "config.json": b"{}", "tokenizer.json": b'{"t": 1}', "model.safetensors": BIG, "README.md": b"read me",
    "modeling.py": b"import os", "empty.json": b"", "deep/x.safetensors": b"no",
}  # fmt: skip


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an S3 server."""
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output)
    try:
        while (said := re.search(r"Running on http://127\.0\.0\.1:(\d+)\s", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield int(said[1])
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="module")
def running(moto: int) -> Iterator[Relay]:
    with Relay(moto) as relay:
        yield relay


@pytest.fixture(scope="module")
def client(moto: int) -> Any:
    """Of who uploads."""
    return botocore.session.Session().create_client(
        "s3", region_name="us-east-1", endpoint_url=f"http://127.0.0.1:{moto}", aws_access_key_id="a",
        aws_secret_access_key="b", config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip


class Store:
    """One bucket of the server, and how its models are fetched."""

    def __init__(self, relay: Relay, client: Any, root: Path) -> None:
        self.relay, self.root = relay, root
        self.endpoint = f"http://127.0.0.1:{relay.port}"
        self.bucket = f"bucket-{root.name.lower().replace('_', '-')}"[:63].rstrip("-")
        self.credentials = root / "credentials"
        self.credentials.write_text(f"[default]\naws_access_key_id = AKIAEXAMPLE\naws_secret_access_key = {SECRET}\n")
        self.client = client
        self.client.create_bucket(Bucket=self.bucket)

    def put(self, key: str, content: bytes, *, digest: bool = False) -> None:
        said = {"ChecksumAlgorithm": "SHA256"} if digest else {}
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content, **said)

    def policy(self, **fields: Any) -> SourcePolicy:
        settings = {
            "s3_endpoint": self.endpoint, "s3_credentials_file": self.credentials, "stall_seconds": 3.0,
            "disk_reserve_bytes": 0, "connections": 2,
        }  # fmt: skip
        config = FetchConfig(**settings | fields)
        return SourcePolicy(frozenset({"s3"}), None, self.root / "cache", fetching=config)

    def run(self, path: str, **fields: Any) -> Kept:
        return Fetcher(SOURCE.job(f"//{self.bucket}/{path}", self.policy(**fields)), lambda _: None).run()

    def refused(self, path: str, **fields: Any) -> Diagnosis:
        job = SOURCE.job(f"//{self.bucket}/{path}", self.policy(**fields))
        running = Fetcher(job, lambda _: None)
        with pytest.raises(Exception) as caught:
            running.run()
        return diagnosed(caught.value, job, running.secrets)


@pytest.fixture
def store(running: Relay, client: Any, tmp_path: Path) -> Store:
    running.heal()
    return Store(running, client, tmp_path)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a file of some MiB has several. Nothing of the environment asks, and descriptions are read once."""
    monkeypatch.setattr(botocore.session, "create_loader", lambda _: LOADER)
    monkeypatch.setattr(partial, "PART", MIB)
    monkeypatch.setattr(fetcher, "_FIRST_PAUSE", 0.05)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def contents(kept: Kept) -> dict[str, bytes]:
    root = kept.path if kept.path.is_dir() else kept.path.parent
    return {file.name: (root / file.name).read_bytes() for file in kept.files}


# What is fetched


def test_a_gguf_file_is_fetched_in_parts_and_named_by_its_content(store):
    store.put("models/m.gguf", BIG)

    kept = store.run("models/m.gguf")

    assert (kept.path.name, kept.path.read_bytes()) == ("m.gguf", BIG)
    assert kept.digest == "sha256:" + hashlib.sha256(BIG).hexdigest()
    assert sorted(store.relay.starts("*m.gguf")) == [n * MIB for n in range(5)]
    assert all(SECRET not in request.query + str(request.headers) for request in store.relay.requests)


def test_a_directory_is_its_weights_and_what_engines_need_beside_them(store):
    for name, content in MODEL.items():
        store.put(f"models/qwen/{name}", content)
    store.put("models/qwen2/config.json", b"another")

    kept = store.run("models/qwen")

    wanted = ("config.json", "tokenizer.json", "model.safetensors", "empty.json")
    assert contents(kept) == {name: MODEL[name] for name in wanted}
    assert kept.path.is_dir()


def test_all_parts_of_a_split_file_come_by_the_name_of_the_first(store):
    for n in (1, 2, 3):
        store.put(f"q/m-Q8_0-0000{n}-of-00003.gguf", b"GGUF%d" % n)
    store.put("q/other.gguf", b"GGUF")

    kept = store.run("q/m-Q8_0-00001-of-00003.gguf")

    assert [content for _, content in sorted(contents(kept).items())] == [b"GGUF1", b"GGUF2", b"GGUF3"]
    assert kept.path.name == "m-Q8_0-00001-of-00003.gguf"


def test_a_model_at_the_root_of_a_bucket_and_odd_names_are_fetched(store):
    store.put("ä b+c%20?1.gguf", b"GGUF odd")
    assert contents(store.run("ä b+c%20?1.gguf")) == {"ä b+c%20?1.gguf": b"GGUF odd"}

    store.client.delete_object(Bucket=store.bucket, Key="ä b+c%20?1.gguf")
    store.put("m-Q8_0.gguf", b"GGUF8")
    assert contents(store.run("")) == {"m-Q8_0.gguf": b"GGUF8"}


def test_more_objects_than_a_page_are_listed(store, monkeypatch):
    for n in range(1, 6):
        store.put(f"q/m-Q8_0-0000{n}-of-00005.gguf", b"GGUF%d" % n)
    ask = botocore.client.BaseClient._make_api_call

    def paged(self, operation, arguments):
        return ask(self, operation, arguments | ({"MaxKeys": 2} if operation == "ListObjectsV2" else {}))

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", paged)

    assert len(store.run("q").files) == 5


@pytest.mark.parametrize("name", ["../../x.gguf", "/etc/x.gguf", "a/../../x.gguf", "a\\x.gguf", "a//x.gguf"])
def test_an_object_whose_name_leads_elsewhere_is_not_seen(store, name):
    store.put(f"m/{name}", b"GGUF")
    store.put("m/good-Q8_0.gguf", b"GGUF good")

    assert contents(store.run("m")) == {"good-Q8_0.gguf": b"GGUF good"}
    assert not list(store.root.rglob("x.gguf"))


async def test_what_was_fetched_is_used_without_asking_again_until_it_goes(store):
    store.put("m.gguf", b"GGUF one")
    reference = f"s3://{store.bucket}/m.gguf"
    first = store.run("m.gguf")
    store.put("m.gguf", b"GGUF two")
    asked = len(store.relay.requests)

    again = await fetch(reference, store.policy(), lambda _: None)

    assert (again.path, again.digest, len(store.relay.requests)) == (first.path, first.digest, asked)
    assert (await resolve(reference, store.policy())).path == first.path


# What is verified


def test_a_flipped_bit_is_caught_where_the_object_was_uploaded_with_its_sha256(store):
    store.put("m.gguf", BIG, digest=True)
    store.relay.fail(Fault("*m.gguf", flip_at=3_000_000))

    found = store.refused("m.gguf")

    assert found.code == Code.MODEL_CORRUPT
    assert hashlib.sha256(BIG).hexdigest() in found.evidence
    assert not [*store.root.glob("cache/s3/*/blobs/*")]
    store.relay.heal()
    assert store.run("m.gguf").path.read_bytes() == BIG


def test_a_flipped_bit_is_caught_where_the_reference_has_the_sha256(store):
    store.put("m.gguf", BIG)
    store.relay.fail(Fault("*m.gguf", flip_at=3_000_000))

    assert store.refused(f"m.gguf#sha256={hashlib.sha256(BIG).hexdigest()}").code == Code.MODEL_CORRUPT
    store.relay.heal()
    assert store.run(f"m.gguf#sha256={hashlib.sha256(BIG).hexdigest()}").path.read_bytes() == BIG


def test_an_object_that_is_replaced_while_it_comes_is_listed_and_begun_anew(store):
    other = random.Random(2).randbytes(len(BIG))
    store.put("m.gguf", BIG)
    job = SOURCE.job(f"//{store.bucket}/m.gguf", store.policy(connections=1))
    seen = []

    def replace_it(_: object) -> None:
        if not seen and len(store.relay.starts("*m.gguf")) >= 3:
            seen.append(1)
            store.put("m.gguf", other)

    store.relay.fail(Fault("*m.gguf", times=1, after=4, cut_at=0, status=503, body=b""))
    running = Fetcher(job, lambda _: None)
    running._progress = lambda *_: replace_it(_)  # called while it comes
    running.throttle.rate = 10 * MIB

    assert running.run().path.read_bytes() == other
    assert seen


# Faults


@pytest.mark.parametrize("fault", [{"reset_at": MIB + 700_001}, {"cut_at": MIB + 700_001}, {"stall_at": MIB + 700_001}])
def test_a_connection_that_breaks_or_falls_silent_is_taken_up_where_it_was(store, fault):
    store.put("m.gguf", BIG)
    store.relay.fail(Fault("*m.gguf", times=1, after=2, **fault))

    assert store.run("m.gguf", connections=1).path.read_bytes() == BIG
    taken_up = {*store.relay.starts("*m.gguf")} - {n * MIB for n in range(5)}
    assert "reset_at" in fault or taken_up == {MIB + 700_001}


def test_a_busy_server_is_asked_again_also_for_the_list(store):
    slow = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    store.put("q/m-Q8_0.gguf", b"GGUF8")
    store.relay.fail(Fault("*", times=3, status=503, body=slow))

    assert contents(store.run("q")) == {"m-Q8_0.gguf": b"GGUF8"}


def test_an_outage_that_does_not_pass_ends_the_pull_with_its_reason(store):
    store.put("m.gguf", BIG)
    store.relay.fail(Fault("*", status=500, body=b""))

    found = store.refused("m.gguf", stall_seconds=1.0)

    assert (found.code, found.fatal) == (Code.SOURCE_UNAVAILABLE, False)
    assert "500" in found.message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("m.gguf", b"<!DOCTYPE html><html><head><meta charset=utf-8><title>Console</title></head></html>"),
        ("m", b"<html><title>Console</title></html>"),
        ("m", b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"),
        ("m", b""),
    ],
)
def test_a_server_that_is_no_s3_is_told(store, path, body):
    store.relay.fail(Fault("*", status=200, body=body, headers={"Content-Type": "text/html"}))

    found = store.refused(path)

    assert (found.code, found.fatal) == (Code.SOURCE_UNAVAILABLE, False)
    assert f"{store.endpoint} does not answer as S3 does" in found.message
    assert "fetch.s3_endpoint" in found.hint


def test_a_server_that_is_not_there_is_told(store):
    found = store.refused("m.gguf", s3_endpoint="http://127.0.0.1:1", stall_seconds=1.0)

    assert found.code == Code.SOURCE_UNAVAILABLE
    assert "127.0.0.1:1" in found.message


@pytest.mark.parametrize(
    ("path", "words"),
    [("none", "nothing below none/"), ("m/x.gguf", "no object m/x.gguf")],
)
def test_what_is_not_there_is_missing(store, path, words):
    store.put("m/y.txt", b"x")

    found = store.refused(path)

    assert (found.code, found.fatal) == (Code.MODEL_MISSING, True)
    assert words in found.message


def test_a_bucket_that_is_not_there_is_missing(store):
    store.bucket = "no-such-bucket"

    found = store.refused("directory")

    assert found.code == Code.MODEL_MISSING
    assert "bucket" in found.message


@pytest.mark.parametrize(
    ("status", "code", "found"),
    [
        (403, "AccessDenied", Code.MODEL_GATED),
        (403, "InvalidAccessKeyId", Code.SECRET_MISSING),
        (403, "SignatureDoesNotMatch", Code.SECRET_MISSING),
        (400, "ExpiredToken", Code.SECRET_MISSING),
        (403, "RequestTimeTooSkewed", Code.MODEL_GATED),
        (418, "Teapot", Code.SOURCE_UNAVAILABLE),
    ],
)
def test_a_refusal_says_whose_credentials_are_asked_for_and_never_shows_them(store, status, code, found):
    store.put("m/config.json", b"{}")
    body = f"<Error><Code>{code}</Code><Message>{SECRET}</Message><AWSAccessKeyId>x</AWSAccessKeyId></Error>"
    store.relay.fail(Fault("*", status=status, body=body.encode()))

    told = store.refused("m")

    assert told.code == found
    assert told.code == Code.SOURCE_UNAVAILABLE or "fetch.s3_credentials_file" in told.hint
    assert SECRET not in repr(told)


def test_credentials_that_end_while_it_comes_are_told(store):
    store.put("m.gguf", BIG)
    store.relay.fail(Fault("*m.gguf", after=3, status=403, body=b"<Error><Code>ExpiredToken</Code></Error>"))

    found = store.refused("m.gguf", connections=1)

    assert found.code == Code.MODEL_GATED
    assert "s3:GetObject" in found.hint


def test_a_public_bucket_is_read_without_credentials(store, monkeypatch):
    monkeypatch.setenv("HOME", str(store.root / "nobody"))
    store.client.put_object(Bucket=store.bucket, Key="m.gguf", Body=BIG, ACL="public-read")

    assert store.run("m.gguf", s3_credentials_file=None).path.read_bytes() == BIG
    assert not [each for each in store.relay.requests if "X-Amz" in each.query or "authorization" in each.headers]


def test_a_file_of_credentials_that_is_none_is_told_and_a_sound_one_goes_before_the_environment(store, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    store.put("m.gguf", b"GGUF")
    store.run("m.gguf")
    assert "AKIAEXAMPLE" in repr(store.relay.requests)
    assert "AKIAOTHER" not in repr(store.relay.requests)

    store.credentials.write_text("[default\n")
    assert (store.refused("m.gguf").code, store.refused("m.gguf").fatal) == (Code.SECRET_MISSING, True)
    store.credentials.unlink()
    found = store.refused("m.gguf")

    assert found.code == Code.SECRET_MISSING
    assert "No such file" in found.message
    assert "fetch.s3_credentials_file" in found.hint


def test_a_missing_extra_says_how_to_install_it(store, monkeypatch):
    (store.root / "botocore.py").write_text("raise ImportError('not here')\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from agent.artifacts.fetcher import Fetcher, diagnosed\nfrom agent.artifacts.job import Job\n"
        "job = Job(source='s3://b/m.gguf', cache=sys.argv[1], kind='s3', repo='b/m.gguf')\n"
        "try:\n    Fetcher(job, print).run()\n"
        "except Exception as error:\n    print(diagnosed(error, job))\n"
    )

    done = subprocess.run([sys.executable, "-c", code, store.root], capture_output=True, text=True, check=True)

    assert "pip install 'llm-node-agent[s3]'" in done.stdout


# Kills


async def test_a_pull_that_is_killed_is_taken_up_where_it_was(store):
    store.put("m.gguf", BIG)
    job = SOURCE.job(f"//{store.bucket}/m.gguf", store.policy(connections=1))
    store.relay.fail(Fault("*m.gguf", stall_at=2 * MIB))  # it is killed halfway, however slow this machine
    argv = [sys.executable, "-m", "agent.artifacts.fetcher"]
    environment = {"PATH": os.defpath, "PYTHONPATH": ".", "AWS_EC2_METADATA_DISABLED": "true"}
    notes = store.root / "cache/s3"
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) as process:
        assert process.stdin is not None
        process.stdin.write(job.encode())
        process.stdin.flush()
        while (
            not (counted := [int(line) for path in notes.rglob("*.parts") for line in _lines(path)])
            or max(counted) < MIB
        ):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    store.relay.heal()
    had = sum(int(line) for path in notes.rglob("*.parts") for line in _lines(path))

    found = await fetch(job.source, store.policy(connections=1), lambda _: None)

    assert found.path.read_bytes() == BIG
    ranges = [each.headers.get("range", "") for each in store.relay.requests if each.method == "GET"]
    spans = [(int(text.split("=")[1].split("-")[0]), int(text.split("-")[1])) for text in ranges]
    assert sum(end - start + 1 for start, end in spans) == len(BIG) - had


def _lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes()[1024:].split(b"\n") if len(line) == 19]


# Secrets


def test_the_credentials_are_nowhere_but_in_their_file(store):
    """In no file of the cache, no message, no command line; the address is signed, and not with the secret itself."""
    store.put("m.gguf", BIG)
    store.relay.fail(Fault("*m.gguf", times=1, status=503, body=b""))
    kept = store.run("m.gguf")
    store.relay.fail(Fault("*", status=403, body=b"<Error><Code>SignatureDoesNotMatch</Code></Error>"))
    found = store.refused("n.gguf")

    everything = [repr(kept), repr(found), repr(store.relay.requests)]
    everything += [path.read_bytes().decode("latin-1") for path in (store.root / "cache").rglob("*") if path.is_file()]
    assert not [text[:200] for text in everything if SECRET in text]
    assert SECRET not in repr(SOURCE.job(f"//{store.bucket}/m.gguf", store.policy()))
    assert found.code == Code.SECRET_MISSING
