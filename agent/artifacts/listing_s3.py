"""What an S3 bucket has, by botocore: who asks, where the bucket is, and signed addresses. The bytes come by our own
transfer. Imported in the process that fetches, and only there.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from agent.artifacts.access import Plain
from agent.artifacts.cache import MOST_FILES, is_plain
from agent.artifacts.coming import Listing, Wanted
from agent.artifacts.errors import ArtifactError, missing, refused, unavailable
from agent.artifacts.job import Job
from agent.artifacts.objects import Place
from agent.artifacts.refusals import Changed
from agent.retries import TRANSIENT, Again
from agent.status import DiagnosisCode

try:
    import botocore.exceptions as failures
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.parsers import ResponseParserError
except ImportError:
    hint = "pip install 'llm-node-agent[s3]' into the agent's environment, then try again"
    raise refused(DiagnosisCode.LAUNCH_FAILED, "s3: needs botocore, which is not installed", hint) from None

#: Seconds until one answer, and for which a signed address is good: it is used at once.
_DEADLINE, _VALID = 20, 900
#: Questions about single objects at once.
_AT_ONCE = 8
#: Where it is not said; also what servers that are not Amazon's take.
_REGION = "us-east-1"
_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "403", "401"})
_UNKNOWN = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
)
_LATER = frozenset({"SlowDown", "Throttling", "RequestLimitExceeded", "ServiceUnavailable", "InternalError", "503"})


def connect(job: Job) -> tuple[S3Access, Callable[[], Listing]]:
    """How files are asked for, and what lists them. Raises `ArtifactError`."""
    bucket = Bucket(job)
    return S3Access(bucket), bucket.list


class Bucket:
    """The bucket of one reference. Its client may be used by several threads."""

    def __init__(self, job: Job) -> None:
        self.job, self.place = job, Place.of(job)
        if job.credentials:
            _ask_as(job)
        with self._told():
            session = botocore.session.Session()
            found = session.get_credentials()
            self.secrets = tuple(filter(None, (found.secret_key, found.token))) if found else ()
            self.client: Any = session.create_client(
                "s3",
                region_name=job.region or session.get_config_variable("region") or _REGION,
                endpoint_url=job.endpoint or None,
                verify=os.environ.get("SSL_CERT_FILE"),
                config=Config(
                    signature_version="s3v4" if found else UNSIGNED,
                    connect_timeout=_DEADLINE, read_timeout=_DEADLINE, retries={"total_max_attempts": 1},
                    s3={"addressing_style": "path"} if job.endpoint else None,
                ),
            )  # fmt: skip
        self.signs = found is not None

    def list(self) -> Listing:
        """Raises `Again` and `ArtifactError`."""
        keys = self.place.parts()
        found = self._looked_at(keys) if keys else list(self._below())
        return Listing("", {each.name: each for each in found}, self._detailed)

    def address(self, url: str) -> str:
        """Of an object, good for a while."""
        key = unquote(urlsplit(url).path.lstrip("/"))
        with self._told():
            said: str = self.client.generate_presigned_url(
                "get_object", Params={"Bucket": self.place.bucket, "Key": key}, ExpiresIn=_VALID
            )
        return said

    def _below(self) -> Iterator[Wanted]:
        """All objects in the directory."""
        start, more = self.place.directory, dict[str, str]()
        count = 0
        while True:
            with self._told():
                page = self.client.list_objects_v2(Bucket=self.place.bucket, Prefix=start, **more)
            if "IsTruncated" not in page:
                raise self._no_s3()
            for entry in page.get("Contents", ()):
                count += 1
                name = str(entry["Key"])[len(start) :]
                if is_plain(name):
                    yield self._wanted(name, entry)
            if count > MOST_FILES:
                raise missing(f"{self.job.source} has more than {MOST_FILES} objects; a model has less")
            if not page["IsTruncated"]:
                break
            if "NextContinuationToken" not in page:
                raise self._no_s3()
            more = {"ContinuationToken": page["NextContinuationToken"]}
        if not count:
            hint = "is the path right? a directory is named without a slash at its end, a GGUF file with its whole name"
            raise missing(f"{self.job.source}: there is nothing below {start or 'the bucket'}", hint)

    def _detailed(self, files: Sequence[Wanted]) -> Sequence[Wanted]:
        """With the digests that were uploaded, which only a question for each object tells."""
        if self.place.parts():
            return files
        looked = self._looked_at([self.place.directory + file.name for file in files])
        if changed := [now.name for now, file in zip(looked, files, strict=True) if now.etag != file.etag]:
            raise Changed(f"{changed[0]} changed while it was listed")
        return looked

    def _looked_at(self, keys: Sequence[str]) -> Sequence[Wanted]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._look, keys))

    def _look(self, key: str) -> Wanted:
        with self._told(key):
            try:
                found = self.client.head_object(Bucket=self.place.bucket, Key=key, ChecksumMode="ENABLED")
            except failures.ClientError:
                # An answer without a body has no reason in it. This one has, or it is as good.
                found = self.client.get_object(Bucket=self.place.bucket, Key=key)
                found["Body"].close()
        return self._wanted(key[len(self.place.directory) :], found)

    def _wanted(self, name: str, said: Mapping[str, Any]) -> Wanted:
        size, etag = said.get("Size", said.get("ContentLength")), str(said.get("ETag") or "")
        if not isinstance(size, int) or not is_plain(name):
            raise self._no_s3()
        digest = self.job.sha256 if self.place.parts() == (self.place.key,) else ""
        digest = digest or _sha256(said)
        url = f"s3://{self.place.bucket}/{quote(self.place.directory + name)}"
        return Wanted(name, url, size, f"sha256:{digest}" if digest else "", digest, etag)

    @contextlib.contextmanager
    def _told(self, key: str = "") -> Iterator[None]:
        """With what went wrong in our words: an error of the library may repeat what nobody should read."""
        subject = self.job.source
        try:
            yield
        except failures.ClientError as error:
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            raise self.refused(str(error.response.get("Error", {}).get("Code", "")), status, subject, key) from None
        except failures.NoCredentialsError:
            raise refused(DiagnosisCode.SECRET_MISSING, f"{subject}: there are no credentials", _WHO) from None
        except ResponseParserError:
            raise self._no_s3() from None
        except (failures.ConnectionError, failures.HTTPClientError) as error:
            raise Again(f"{self.job.endpoint or 'S3'}: {type(error).__name__}") from None
        except failures.BotoCoreError as error:  # a damaged file of credentials, a profile that is none
            message = f"{subject}: botocore cannot ask S3: {type(error).__name__}"
            raise refused(DiagnosisCode.SECRET_MISSING, message, _WHO) from None

    def _no_s3(self) -> ArtifactError:
        where = self.job.endpoint or "S3"
        hint = "fetch.s3_endpoint must be the address of its API, which is another one than that of its console"
        return unavailable(f"{self.job.source}: {where} does not answer as S3 does", hint)

    def refused(self, code: str, status: int, subject: str, key: str = "") -> Exception:
        """What S3 answers (docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html)."""
        if code in _LATER or status in TRANSIENT:
            return Again(f"S3 answers with {code or status}")
        if code in _UNKNOWN:
            return refused(DiagnosisCode.SECRET_MISSING, f"{subject}: S3 does not take the credentials ({code})", _WHO)
        if code in _DENIED or status in {401, 403}:
            may = (
                "these credentials may not read it" if self.signs else "there are no credentials, and it is not public"
            )
            hint = f"reading needs s3:GetObject, and s3:ListBucket for a directory. {_WHO}"
            return refused(DiagnosisCode.MODEL_GATED, f"{subject}: {may}, or it is not there", hint)
        if status == 404:
            what = "bucket of this name" if code == "NoSuchBucket" else f"object {key or self.place.key}"
            return missing(
                f"{subject}: there is no {what}", "S3 tells capitals apart; fetch.s3_endpoint says where it is"
            )
        late = code == "RequestTimeTooSkewed"
        return unavailable(
            f"{subject}: S3 answers with {code or f'status {status}'}", "set this host's clock" if late else ""
        )


_WHO = "fetch.s3_credentials_file names a file of credentials; without it those of the agent's environment are used"


class S3Access(Plain):
    """Signed addresses of one bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    @property
    def secrets(self) -> tuple[str, ...]:
        return self._bucket.secrets

    def address(self, url: str) -> str:
        return self._bucket.address(url)

    def refusal(self, status: int, headers: Mapping[str, str], subject: str, host: str) -> Exception:
        if status in {404, 412}:
            return Changed(f"{subject} changed since it was listed")
        if status in {401, 403}:
            return self._bucket.refused("", status, subject)
        return super().refusal(status, headers, subject, host)


def _ask_as(job: Job) -> None:
    """By the file that the operator named, and nobody else's keys. Raises `ArtifactError`."""
    try:
        with open(job.credentials, "rb"):  # noqa: PTH123 - to be told when it cannot be read: botocore passes over that
            pass
    except OSError as error:
        message = f"{job.source}: {job.credentials} cannot be read: {error.strerror}"
        raise refused(DiagnosisCode.SECRET_MISSING, message, _WHO) from None
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = job.credentials
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        os.environ.pop(name, None)


def _sha256(said: Mapping[str, Any]) -> str:
    """Of the whole object, in hexadecimal, where it was uploaded with one. That of an upload in parts is another kind:
    a digest of digests."""
    text = str(said.get("ChecksumSHA256") or "")
    whole = said.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT" and re.fullmatch(r"[A-Za-z0-9+/]{43}=", text)
    return base64.b64decode(text).hex() if whole else ""
