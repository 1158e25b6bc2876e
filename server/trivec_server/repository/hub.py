"""
Files of a model repository on the Hugging Face hub, through huggingface_hub and its cache.

huggingface_hub reads HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and the user's token. It does not go on with a download that
an earlier process left unfinished, nor compare what it got with the hub's SHA-256: for large files both are done here,
and the file is then put where its cache expects it.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented, yet not in __all__

from trivec_server.errors import CommandError
from trivec_server.repository.manifest import Source, measure_file
from trivec_server.repository.space import SpaceNeed

CONFIG_FILE = "config.json"

# The HTTP library's own root of errors: httpx in huggingface_hub 1, httpx2 in 2.
_HTTP_ERROR: Final[type[Exception]] = next(base for base in HfHubHTTPError.__bases__ if base is not OSError)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GO_ON = "run the same command again: it goes on where it stopped"


@dataclass(frozen=True, slots=True)
class _HubFile:
    name: str
    bytes: int | None = None
    sha256: str | None = None


class HubRepository:
    """
    One revision of a model repository on the hub, fixed to a commit.

    If the hub cannot be reached, what lies in the cache is used, and `report` is told so.

    Raises:
        CommandError: there is no such repository or revision, access is refused, or the hub cannot be reached and
            the cache lacks the revision.
    """

    def __init__(self, repository: str, revision: str | None, report: Callable[[str], None]) -> None:
        self._repository = repository
        self._revision = revision or constants.DEFAULT_REVISION
        self._report = report
        self._online = True
        with self._explained():
            try:
                info = HfApi().model_info(repository, revision=revision, files_metadata=True)
            except HfHubHTTPError:
                raise
            except (OfflineModeIsEnabled, _HTTP_ERROR) as error:
                self._open_cache(error)
            else:
                self._commit = info.sha or self._revision
                self._files = {sibling.rfilename: _hub_file(sibling) for sibling in info.siblings or ()}
                self._fix_commit()

    @property
    def source(self) -> Source:
        """The repository and its commit."""
        return Source(kind="hub", name=self._repository, revision=self._commit)

    def names(self) -> frozenset[str]:
        """The names of all files; without the hub, of those in the cache."""
        return frozenset(self._files)

    def where(self) -> str:
        """A phrase that says where a file that is not in `names` was looked for."""
        place = f"{self._repository} at {self._commit[:12]}"
        if self._online:
            return place
        return f"the cache {constants.HF_HUB_CACHE} of {place}, and the hub cannot be asked"

    def download_need(self, names: Iterable[str]) -> SpaceNeed:
        """The room that `fetch` will need for these files: 0 bytes if all are in the cache."""
        count = sum(self._bytes_to_fetch(self._files[name]) for name in names if self._cached(name) is None)
        mend = "set HF_HOME to a directory on another disk"
        return SpaceNeed(Path(constants.HF_HUB_CACHE), count, "the download", mend)

    def fetch(self, name: str) -> Path:
        """
        Downloads a file, or finds it in the cache; compares its SHA-256 with the hub's where that is known.

        Raises:
            CommandError: the download fails or is cut short, or the SHA-256 differs (what was downloaded is deleted).
        """
        file = self._files[name]
        with self._explained():
            path = self._cached(name)
            if path is not None:
                self._check_cached(file, path)
                return path
            if file.sha256 is not None:
                self._download(file, file.sha256)
            return Path(hf_hub_download(self._repository, name, revision=self._commit))

    def _bytes_to_fetch(self, file: _HubFile) -> int:
        partial = self._partial_path(file.sha256) if file.sha256 else None
        return (file.bytes or 0) - (partial.stat().st_size if partial is not None and partial.exists() else 0)

    def _fix_commit(self) -> None:
        """Fetches the small file that every model has by the revision's name, so that the cache learns its commit."""
        if CONFIG_FILE not in self._files or self._revision == self._commit:
            return
        path = Path(hf_hub_download(self._repository, CONFIG_FILE, revision=self._revision))
        if path.parent.name != self._commit:
            raise CommandError(f"{self._repository}: {self._revision} moved while it was read: run the command again")

    def _open_cache(self, error: Exception) -> None:
        self._online = False
        config = try_to_load_from_cache(self._repository, CONFIG_FILE, revision=self._revision)
        cause = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else f"{_one_line(error)}"
        if not isinstance(config, str):
            raise CommandError(
                f"{self._repository}: the hub {constants.ENDPOINT} cannot be reached ({cause}) and the cache "
                f"{constants.HF_HUB_CACHE} does not hold {self._revision}: check the network, HF_ENDPOINT and "
                f"HF_HUB_OFFLINE, or pull from a local directory"
            )
        snapshot = Path(config).parent
        self._commit = snapshot.name
        found = (path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
        self._files = {name: _HubFile(name) for name in found}
        self._report(f"the hub cannot be reached ({cause}); using the cache, revision {self._commit}")

    def _cached(self, name: str) -> Path | None:
        path = try_to_load_from_cache(self._repository, name, revision=self._commit)
        return Path(path) if isinstance(path, str) else None

    def _check_cached(self, file: _HubFile, path: Path) -> None:
        # In the cache a large file is a link to its SHA-256, so that it can be checked without the hub. That may be a
        # link again, to a file with another hash for a name.
        blob_name = path.readlink().name if path.is_symlink() else path.name
        expected = file.sha256 or (blob_name if _SHA256.fullmatch(blob_name) else None)
        if expected is not None and (found := measure_file(path).sha256) != expected:
            raise CommandError(
                f"{file.name} of {self._repository}: wrong checksum: SHA-256 is {found}, the hub says {expected}: "
                f"delete {path.resolve()} and pull again"
            )

    def _partial_path(self, sha256: str) -> Path:
        folder = repo_folder_name(repo_id=self._repository, repo_type="model")
        return Path(constants.HF_HUB_CACHE) / folder / "blobs" / f"{sha256}.incomplete"

    def _download(self, file: _HubFile, sha256: str) -> None:
        """Downloads a large file to the cache's place for it, going on with what an earlier pull left there."""
        partial = self._partial_path(sha256)
        blob = partial.with_suffix("")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial) as content:
            if blob.exists():
                partial.unlink()
                self._check_cached(file, blob)
                return
            done = content.seek(0, os.SEEK_END)
            if file.bytes is not None and done > file.bytes:
                done = content.truncate(0)
                content.seek(0)
            if done:
                self._report(f"{file.name}: going on after {done} of {file.bytes} bytes")
            http_get(
                hf_hub_url(self._repository, file.name, revision=self._commit),
                content,
                resume_size=done,
                headers=build_hf_headers(),
                expected_size=file.bytes,
                displayed_filename=file.name,
            )
            content.flush()
            if (found := measure_file(partial).sha256) != sha256:
                partial.unlink()
                raise CommandError(
                    f"{file.name} of {self._repository}: wrong checksum after the download: SHA-256 is {found}, the "
                    f"hub says {sha256}. The file was deleted; pull again"
                )
            partial.rename(blob)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what huggingface_hub raises into one line for the user."""
        try:
            yield
        except GatedRepoError:
            raise CommandError(
                f"{self._repository} is gated: accept its terms at {constants.ENDPOINT}/{self._repository}, then log "
                f"in with `hf auth login` or set HF_TOKEN"
            ) from None
        except RepositoryNotFoundError:
            raise CommandError(
                f"the hub {constants.ENDPOINT} has no model repository {self._repository}, or it is private: check "
                f"the name; for a private one log in with `hf auth login` or set HF_TOKEN"
            ) from None
        except RevisionNotFoundError:
            raise CommandError(f"{self._repository} has no revision {self._revision}") from None
        except HFValidationError as error:
            raise CommandError(f"{self._repository} is not the name of a hub repository: {_one_line(error)}") from None
        except HfHubHTTPError as error:
            raise CommandError(self._refusal(error)) from None
        except EntryNotFoundError as error:
            cause = error.__cause__ or error
            raise CommandError(f"{self._repository}: cannot download: {_one_line(cause)}: {_GO_ON}") from None
        except _HTTP_ERROR as error:
            raise CommandError(f"{self._repository}: the download broke off: {_one_line(error)}: {_GO_ON}") from None
        except OSError as error:
            raise CommandError(self._disk_fault(error)) from None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise CommandError(
                f"{constants.ENDPOINT} does not answer as a Hugging Face hub ({_one_line(error)}): check HF_ENDPOINT"
            ) from None

    def _refusal(self, error: HfHubHTTPError) -> str:
        status = error.response.status_code
        if status in (401, 403):
            return (
                f"{self._repository}: the hub {constants.ENDPOINT} refuses access (HTTP {status}): the token is wrong "
                f"or lacks the right to read: log in with `hf auth login` or set HF_TOKEN"
            )
        return f"{self._repository}: the hub {constants.ENDPOINT} answers HTTP {status}: try again later"

    def _disk_fault(self, error: OSError) -> str:
        if error.errno is None:
            # huggingface_hub raises a bare OSError when the size differs from what the hub announced.
            return f"{self._repository}: truncated download: {_one_line(error)}: {_GO_ON}"
        path = error.filename or constants.HF_HUB_CACHE
        return f"cannot write the download to {path}: {error.strerror}: set HF_HOME to a directory with room"


def _hub_file(sibling: RepoSibling) -> _HubFile:
    if sibling.lfs is None:
        return _HubFile(sibling.rfilename, sibling.size)
    if not _SHA256.fullmatch(sibling.lfs.sha256):
        # It becomes a file name.
        raise ValueError(f"{sibling.lfs.sha256!r} is not a SHA-256")
    return _HubFile(sibling.rfilename, sibling.size, sibling.lfs.sha256)


def _one_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading and writing, once no other process holds it so. It may have become another file then."""
    while True:
        with path.open("a+b"):
            pass
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                yield file
                return
