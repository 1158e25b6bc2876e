"""
The right to change one model of a repository, for one process at a time on whatever host: a file with an owner and an
expiry.

Of a folder that several hosts share it needs only that a file can be made exclusively and renamed in one step. The
clocks of hosts are not compared: a lock has expired once its file has stayed the same for as long as it says, by the
clock of the one who looks on. What is built under a lock is moved into the repository in one step as well, so that even
two who both believe to hold it do no harm but work in vain.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from trivec_server.errors import CommandError
from trivec_server.repository.lock_owner import LockOwner, read_owner

LOCK_PREFIX = ".lock-"
CLAIM_PREFIX = ".claim-"

_CONTENT_BYTES = 1024
"""The size of every lock file, so that a renewal is one write in place."""
_MAX_NAME_BYTES = 200
_SUFFIX_DIGITS = 16
_MAX_EXPIRY_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LockTiming:
    """
    In seconds: when a lock that is not renewed expires, how often it is renewed, and how often those who wait for it
    look, and say so.
    """

    expiry_s: float = 60.0
    renewal_s: float = 20.0
    look_s: float = 1.0
    report_s: float = 30.0


_TIMING = LockTiming()


def lock_name(model: str) -> str:
    """What stands for a model in the names of its lock and its building directories."""
    name = model.encode(errors="surrogateescape")
    return model if len(name) <= _MAX_NAME_BYTES else hashlib.sha256(name).hexdigest()


class ModelLock:
    """
    One process's way to one model's lock. `try_acquire` is called again and again until it succeeds; then `renew`
    before the lock expires, from any thread, and `confirm` before something is done that others shall not do as well.
    """

    def __init__(
        self,
        repository: Path,
        model: str,
        *,
        expiry_s: float = _TIMING.expiry_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = repository / f"{LOCK_PREFIX}{lock_name(model)}"
        self.owner = LockOwner()
        self._model = model
        self._expiry_s = expiry_s
        self._clock = clock
        self._writing = threading.Lock()
        self._renewals = 0
        self._seen: bytes | None = None
        self._seen_at = 0.0
        self._claim: Path | None = None
        self._claimed_at = 0.0

    def try_acquire(self) -> bool:
        """
        Takes the lock if nobody holds it, or who did has not renewed it for its time, or has died on this machine.

        Raises:
            OSError: the repository cannot be read or written to.
        """
        content = self._read()
        if content is None:
            return self._create()
        if content != self._seen:
            self._seen, self._seen_at = content, self._clock()
        holder = read_owner(content)
        is_over = self._expires_in_s() <= 0 or (holder is not None and holder.is_known_dead)
        return is_over and self._take_over(content)

    def describe(self) -> str:
        """Who holds the lock that `try_acquire` did not get, and until when, for the user who waits."""
        holder = read_owner(self._seen or b"")
        who = str(holder) if holder is not None else "another process"
        return (
            f"waiting for {who}, which is making a version of {self._model}; its lock {self.path} expires in "
            f"{max(0.0, self._expires_in_s()):.0f} s unless it is renewed"
        )

    def renew(self) -> None:
        """
        Puts the expiry off.

        Raises:
            CommandError: another process has taken over.
            OSError: the file cannot be written to just now.
        """
        with self._writing:
            try:
                # Not by its name: if another process replaces the file meanwhile, what is written is lost.
                with self.path.open("r+b", buffering=0) as file:
                    self._check(file.read())
                    self._renewals += 1
                    file.seek(0)
                    file.write(self._content())
            except FileNotFoundError:
                self._check(b"")

    def confirm(self) -> None:
        """
        Finds out whether the lock is still held.

        Raises:
            CommandError: another process has taken over, because this one did not get to renew it in time.
        """
        self._check(self._read() or b"")

    def release(self) -> None:
        """Lets the next one have it. Without effect if it is not held."""
        with self._writing, suppress(OSError):
            if self._is_own():
                self.path.unlink()

    def _check(self, content: bytes) -> None:
        holder = read_owner(content)
        if holder is None or holder.token != self.owner.token:
            by = f"{holder} has taken it over" if holder is not None else "it is gone"
            raise CommandError(
                f"{self.path}: this lock was lost, {by}: it had not been renewed for {self._expiry_s:.0f} s. Nothing "
                "was added to the repository; run the same command again"
            )

    def _expires_in_s(self) -> float:
        """How long the file still has to stay as it was seen last, to have expired."""
        return self._seen_at + _expiry_of(self._seen or b"", self._expiry_s) - self._clock()

    def _take_over(self, expired: bytes) -> bool:
        """Replaces an expired lock. Of several who do so at once one may: the first to make the file that claims it."""
        claim = self._beside(hashlib.sha256(expired).hexdigest()[:_SUFFIX_DIGITS])
        draft = self._beside(self.owner.token)
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            self._forget_dead(claim)
            return False
        try:
            if self._read() != expired:
                # It was renewed after all, or someone was quicker.
                return False
            draft.write_bytes(self._content())
            draft.replace(self.path)
        finally:
            draft.unlink(missing_ok=True)
            claim.unlink(missing_ok=True)
        return self._is_own()

    def _forget_dead(self, claim: Path) -> None:
        """A claim is there for a moment. One that stays is of a process that was killed in that moment."""
        if claim != self._claim:
            self._claim, self._claimed_at = claim, self._clock()
        elif self._clock() - self._claimed_at >= self._expiry_s:
            claim.unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{CLAIM_PREFIX}{lock_name(self._model)}.{suffix}")

    def _is_own(self) -> bool:
        holder = read_owner(self._read() or b"")
        return holder is not None and holder.token == self.owner.token

    def _create(self) -> bool:
        return self._write_new(self._content()) and self._is_own()

    def _write_new(self, content: bytes) -> bool:
        """Makes the file if there is none."""
        try:
            with self.path.open("xb", buffering=0) as file:
                try:
                    file.write(content)
                except OSError:
                    self.path.unlink(missing_ok=True)
                    raise
        except FileExistsError:
            return False
        except FileNotFoundError:
            # Who held it has failed, and removed the repository that it had made.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return False
        return True

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def _content(self) -> bytes:
        facts = {
            **asdict(self.owner),
            "expiry_s": self._expiry_s,
            "renewals": self._renewals,
            "renewed": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return json.dumps(facts).encode().ljust(_CONTENT_BYTES - 1) + b"\n"


@contextmanager
def hold_model(
    repository: Path, model: str, report: Callable[[str], None], *, timing: LockTiming = _TIMING
) -> Iterator[ModelLock]:
    """
    Waits for a model's lock, holds it for as long as the block runs, and lets it go however that ends.

    Args:
        repository: A directory that is there.
        model: The model's name.
        report: Called with a line for the user while others hold the lock.
        timing: When locks expire, and what follows from it.

    Raises:
        OSError: the repository cannot be read or written to.
    """
    lock = ModelLock(repository, model, expiry_s=timing.expiry_s)
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(lock, over, timing.renewal_s), name="lock", daemon=True)
    try:
        _wait_for(lock, report, timing)
        renewing.start()
        yield lock
    finally:
        over.set()
        if renewing.is_alive():
            renewing.join()
        lock.release()


def _wait_for(lock: ModelLock, report: Callable[[str], None], timing: LockTiming) -> None:
    told_at: float | None = None
    while not lock.try_acquire():
        now = time.monotonic()
        if told_at is None or now - told_at >= timing.report_s:
            report(lock.describe())
            told_at = now
        # On a shared folder no event tells of what another host does.
        time.sleep(timing.look_s)


def _renew(lock: ModelLock, over: threading.Event, renewal_s: float) -> None:
    while not over.wait(renewal_s):
        # What cannot be written to now may be a little later, in time still.
        with suppress(OSError):
            try:
                lock.renew()
            except CommandError:
                # Whoever holds the lock asks before it does something: see `ModelLock.confirm`.
                return


def _expiry_of(content: bytes, otherwise: float) -> float:
    """What a lock's file says of its expiry, in seconds."""
    try:
        said = json.loads(content)["expiry_s"]
    except (ValueError, LookupError, TypeError):
        return otherwise
    return float(said) if isinstance(said, int | float) and 0 < said <= _MAX_EXPIRY_S else otherwise
