"""The lock of a model: one holder at a time, and what becomes of it when the holder does not go on."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from trivec_server.errors import CommandError
from trivec_server.repository.building import find_buildings, open_site
from trivec_server.repository.lock_owner import LockOwner, read_owner
from trivec_server.repository.model_lock import LockTiming, ModelLock, hold_model

EXPIRY_S = 60.0
PATIENCE_S = 60.0


@dataclass
class Clock:
    """A clock that the test sets."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def contender(tmp_path: Path, clock: Clock) -> Callable[[], ModelLock]:
    """Makes another contender for the same lock."""
    return lambda: ModelLock(tmp_path, "m", expiry_s=EXPIRY_S, clock=clock)


Contender = Callable[[], ModelLock]


def change(path: Path, **facts: object) -> None:
    """Writes another file of a lock in place of the one that is there, or of none."""
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps({**found, **facts}))


def test_one_holds_it(contender: Contender) -> None:
    first, second = contender(), contender()
    assert first.try_acquire()
    assert not second.try_acquire()
    first.confirm()
    with pytest.raises(CommandError):
        second.confirm()


def test_models_have_locks_of_their_own(tmp_path: Path) -> None:
    assert ModelLock(tmp_path, "a").try_acquire()
    assert ModelLock(tmp_path, "b").try_acquire()


def test_what_is_let_go_is_free(contender: Contender, tmp_path: Path) -> None:
    first, second = contender(), contender()
    first.try_acquire()
    first.release()
    assert list(tmp_path.iterdir()) == []
    assert second.try_acquire()


def test_who_waits_cannot_let_it_go(contender: Contender) -> None:
    first, second = contender(), contender()
    first.try_acquire()
    second.try_acquire()
    second.release()
    first.confirm()


def test_a_renewed_lock_does_not_expire(contender: Contender, clock: Clock) -> None:
    first, second = contender(), contender()
    first.try_acquire()
    for _ in range(10):
        assert not second.try_acquire()
        clock.now += EXPIRY_S - 1
        first.renew()
    first.confirm()


def test_a_lock_that_is_not_renewed_expires_and_is_taken_over(contender: Contender, clock: Clock) -> None:
    first, second = contender(), contender()
    first.try_acquire()
    second.try_acquire()
    clock.now += EXPIRY_S - 1
    assert not second.try_acquire()
    clock.now += 1
    assert second.try_acquire()
    second.confirm()


def test_who_has_lost_it_is_told_by_whom_it_was_taken(contender: Contender, clock: Clock) -> None:
    first, second = contender(), contender()
    first.try_acquire()
    second.try_acquire()
    clock.now += EXPIRY_S
    second.try_acquire()
    for attempt in (first.confirm, first.renew):
        with pytest.raises(CommandError, match=f"this lock was lost, {second.owner} has taken it over"):
            attempt()
    first.release()
    second.confirm()


def test_a_lock_that_someone_removed_is_lost(contender: Contender) -> None:
    lock = contender()
    lock.try_acquire()
    lock.path.unlink()
    for attempt in (lock.confirm, lock.renew):
        with pytest.raises(CommandError, match="this lock was lost, it is gone"):
            attempt()
    assert not lock.path.exists()


def test_the_clocks_of_others_do_not_matter(contender: Contender, clock: Clock) -> None:
    """A lock that says it was renewed long ago expires only after it was watched for its time."""
    first, second = contender(), contender()
    first.try_acquire()
    change(first.path, renewed="1999-01-01T00:00:00+00:00")
    clock.now += 10 * EXPIRY_S
    assert not second.try_acquire()
    clock.now += EXPIRY_S
    assert second.try_acquire()


def test_the_expiry_is_that_of_the_holder(tmp_path: Path, contender: Contender, clock: Clock) -> None:
    patient, hasty = ModelLock(tmp_path, "m", expiry_s=600, clock=clock), contender()
    patient.try_acquire()
    hasty.try_acquire()
    clock.now += EXPIRY_S
    assert not hasty.try_acquire()
    clock.now += 600
    assert hasty.try_acquire()


@pytest.mark.parametrize("content", [b"", b"\0" * 1024, b"{}", b'{"expiry_s": 1e300}', b"[1]"])
def test_a_file_that_tells_nothing_expires_as_well(
    contender: Contender, clock: Clock, tmp_path: Path, content: bytes
) -> None:
    lock = contender()
    lock.path.write_bytes(content)
    assert not lock.try_acquire()
    assert "waiting for another process" in lock.describe()
    clock.now += EXPIRY_S
    assert lock.try_acquire()
    assert [path.name for path in tmp_path.iterdir()] == [lock.path.name]


def test_of_two_who_take_over_one_wins(contender: Contender, clock: Clock) -> None:
    dead, *thieves = (contender() for _ in range(3))
    dead.try_acquire()
    for thief in thieves:
        thief.try_acquire()
    clock.now += EXPIRY_S
    assert [thief.try_acquire() for thief in thieves] == [True, False]
    thieves[0].confirm()


def test_of_many_who_take_over_at_the_same_time_one_wins(contender: Contender, clock: Clock) -> None:
    for _ in range(30):
        dead, *thieves = (contender() for _ in range(5))
        dead.try_acquire()
        for thief in thieves:
            thief.try_acquire()
        clock.now += EXPIRY_S
        (holder,) = at_once(thieves)
        holder.confirm()
        holder.release()
        assert not list(dead.path.parent.iterdir())


def at_once(contenders: Sequence[ModelLock]) -> list[ModelLock]:
    """Those of the contenders who get the lock when all of them try."""
    start = threading.Barrier(len(contenders))
    holders: list[ModelLock] = []

    def attempt(contender: ModelLock) -> None:
        start.wait()
        if contender.try_acquire():
            holders.append(contender)

    threads = [threading.Thread(target=attempt, args=(contender,)) for contender in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return holders


def test_of_many_who_come_at_the_same_time_one_wins(contender: Contender) -> None:
    for _ in range(30):
        (holder,) = at_once([contender() for _ in range(5)])
        holder.release()


def test_who_died_while_taking_over_is_not_waited_for_forever(
    contender: Contender, clock: Clock, tmp_path: Path
) -> None:
    dead, second = contender(), contender()
    dead.try_acquire()
    second.try_acquire()
    digest = hashlib.sha256(dead.path.read_bytes()).hexdigest()
    claim = tmp_path / f".claim-m.{digest[:16]}"
    claim.touch()
    for _ in range(2):
        clock.now += EXPIRY_S
        assert not second.try_acquire()
    assert second.try_acquire()


def test_what_was_left_by_those_who_died_is_removed(tmp_path: Path) -> None:
    for name in ("m", "n"):
        (tmp_path / f".claim-{name}.0123456789abcdef").touch()
        (tmp_path / f".building-{name}.0123456789abcdef" / "version").mkdir(parents=True)
    with open_site(tmp_path, "m", print):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".building-n.0123456789abcdef",
        ".claim-n.0123456789abcdef",
    ]


def killed_holder(repository: Path) -> None:
    """A process that dies with the lock in its hands."""
    hold = (
        "import os, sys, signal; from pathlib import Path; from trivec_server.repository.model_lock import ModelLock\n"
        "assert ModelLock(Path(sys.argv[1]), 'm').try_acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", hold, repository], check=False).returncode < 0


def test_who_died_on_this_machine_is_not_waited_for(contender: Contender, tmp_path: Path) -> None:
    killed_holder(tmp_path)
    assert contender().try_acquire()


def test_of_another_machines_processes_nothing_is_known(contender: Contender, tmp_path: Path) -> None:
    killed_holder(tmp_path)
    lock = contender()
    change(lock.path, host="elsewhere", kernel="00000000-0000-0000-0000-000000000000 pid:[1]")
    assert not lock.try_acquire()
    assert "process" in lock.describe()
    assert "on elsewhere" in lock.describe()


def test_another_process_with_the_same_number_is_not_the_owner() -> None:
    alive = LockOwner()
    assert not alive.is_known_dead
    assert LockOwner(pid=alive.pid, started="1").is_known_dead


def test_a_lock_names_its_owner(contender: Contender) -> None:
    lock = contender()
    lock.try_acquire()
    assert read_owner(lock.path.read_bytes()) == lock.owner
    lock.renew()
    assert read_owner(lock.path.read_bytes()) == lock.owner


def test_the_longest_name_of_a_model_has_a_lock(tmp_path: Path) -> None:
    names = ["x" * 255, "x" * 254 + "y"]
    for name in names:
        with open_site(tmp_path, name, print) as site:
            assert site.version_dir.is_dir()
    assert len({ModelLock(tmp_path, name).path for name in names}) == 2


def test_the_lock_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    with hold_model(tmp_path, "m", print, timing=LockTiming(renewal_s=0.001)) as lock:
        contents = {lock.path.read_bytes()}
        while len(contents) < 3:
            contents.add(lock.path.read_bytes())
        lock.confirm()


def test_the_lock_is_let_go_however_the_work_ends(tmp_path: Path) -> None:
    for fault in (KeyboardInterrupt, SystemExit, OSError):
        with suppress(fault), hold_model(tmp_path, "m", print):
            assert list(tmp_path.iterdir())
            raise fault
        assert not list(tmp_path.iterdir())


def test_who_waits_is_told_for_whom_and_goes_on_once_it_is_free(tmp_path: Path) -> None:
    told: list[str] = []
    waiting, acquired = threading.Event(), threading.Event()

    def report(line: str) -> None:
        told.append(line)
        waiting.set()

    def wait() -> None:
        with hold_model(tmp_path, "m", report, timing=LockTiming(look_s=0.001)):
            acquired.set()

    with hold_model(tmp_path, "m", print) as lock:
        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(PATIENCE_S)
        assert not acquired.is_set()
    assert acquired.wait(PATIENCE_S)
    thread.join()
    (line,) = told
    assert line == (
        f"waiting for {lock.owner}, which is making a version of m; its lock {lock.path} expires in 60 s unless it is "
        "renewed"
    )


def take_over(repository: Path, clock: Clock) -> ModelLock:
    """Another one's lock in place of that of who builds."""
    thief = ModelLock(repository, "m", expiry_s=EXPIRY_S, clock=clock)
    thief.try_acquire()
    clock.now += EXPIRY_S
    assert thief.try_acquire()
    return thief


def test_who_has_lost_the_lock_does_not_publish(tmp_path: Path, clock: Clock) -> None:
    with open_site(tmp_path, "m", print) as site:
        (site.version_dir / "file").write_text("content")
        thief = take_over(tmp_path, clock)
        with pytest.raises(CommandError, match="this lock was lost"):
            site.publish(tmp_path / "m" / "1", {}, replace=False)
    thief.confirm()
    assert [path.name for path in tmp_path.iterdir()] == [thief.path.name]


def test_who_has_lost_the_lock_and_so_the_building_is_told_that(tmp_path: Path, clock: Clock) -> None:
    """Not that a file is missing, which the one that took over has removed."""

    def build() -> None:
        with open_site(tmp_path, "m", print) as first:
            take_over(tmp_path, clock).release()
            with open_site(tmp_path, "m", print):
                (first.version_dir / "file").write_text("content")

    with pytest.raises(CommandError, match="this lock was lost"):
        build()


def test_a_building_is_of_whoever_holds_the_lock(tmp_path: Path, clock: Clock) -> None:
    with open_site(tmp_path, "m", print) as site:
        (owner,) = find_buildings(tmp_path).values()
        assert owner is not None
        assert str(owner) == str(LockOwner())
        lock = take_over(tmp_path, clock)
        assert find_buildings(tmp_path) == {site.version_dir.parent: None}
        lock.release()


def test_what_another_model_is_built_in_is_left_alone(tmp_path: Path) -> None:
    """Also where one name begins with the other."""
    with open_site(tmp_path, "m.x", print) as longer, open_site(tmp_path, "m", print) as shorter:
        assert longer.version_dir.is_dir()
        assert shorter.version_dir.is_dir()
