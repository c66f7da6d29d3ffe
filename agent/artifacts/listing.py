"""What a repository on a hub has, by the hub's own client. Imported in the process that fetches, and only there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from agent.artifacts.cache import MOST_FILES, is_plain
from agent.artifacts.coming import Listing, Wanted
from agent.artifacts.errors import missing, unavailable
from agent.artifacts.job import Job
from agent.artifacts.refusals import Asked, refusal
from agent.retries import Again

#: Seconds until one answer.
_DEADLINE = 20.0


def ask(job: Job) -> Listing:
    """One question, one answer. Raises `Again` and `ArtifactError`."""
    api = HfApi(endpoint=job.endpoint, token=job.token or False, library_name="llm-node-agent")
    try:
        info = api.model_info(job.repo, revision=job.revision, files_metadata=True, timeout=_DEADLINE)
    except HfHubHTTPError as error:
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        host = httpx2.URL(job.endpoint).host
        asked = Asked(job.source, host, has_token=bool(job.token))
        raise refusal(error.response.status_code, headers, asked) from None
    except httpx2.TransportError as error:
        raise Again(f"{httpx2.URL(job.endpoint).host}: {str(error)[:120] or type(error).__name__}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        hint = "is the endpoint the address of a hub, or of a mirror that has its API too?"
        raise unavailable(f"{job.endpoint} does not answer for {job.source} as a hub does", hint) from None
    if not re.fullmatch(r"[0-9a-f]{40,64}", str(info.sha)):
        raise unavailable(f"the hub does not say at which commit {job.source} is: sha is {str(info.sha)[:60]!r}", "")
    return Listing(str(info.sha), dict(_files(job, info)))


def _files(job: Job, info: ModelInfo) -> Iterator[tuple[str, Wanted]]:
    siblings = info.siblings or []
    if len(siblings) > MOST_FILES:
        raise missing(f"{job.source} has {len(siblings)} files; a model has less than {MOST_FILES}")
    for sibling in siblings:
        name = sibling.rfilename
        # Others are not seen: no engine asks for a file of such a name.
        if is_plain(str(name)):
            yield name, _wanted(job, str(info.sha), sibling)


def _wanted(job: Job, commit: str, sibling: RepoSibling) -> Wanted:
    lfs, name = sibling.lfs, sibling.rfilename
    size, blob = (lfs.size, lfs.sha256) if lfs else (sibling.size, sibling.blob_id)
    sound = isinstance(size, int) and 0 <= size < 1 << 60
    if not sound or not re.fullmatch(r"[0-9a-f]{64}" if lfs else r"[0-9a-f]{40}", str(blob)):
        raise unavailable(f"the hub lists {name[:80]!r} of {job.source} without a size and a digest", "")
    url = hf_hub_url(job.repo, name, revision=commit, endpoint=job.endpoint)
    return Wanted(name, url, int(size or 0), f"sha256:{blob}" if lfs else f"git:{blob}", str(blob))
