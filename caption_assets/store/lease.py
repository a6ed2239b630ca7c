"""Leases: the exclusive right of one run to write a shard's captions."""

from __future__ import annotations

import json
import os
import posixpath
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import inf
from types import TracebackType
from uuid import uuid4

from caption_assets.errors import CaptionAssetsError, printable
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.root import Root

RENEWALS = 3
"""Number of renewals in the lifetime of a lease: two may fail before it expires."""
MAX_ATTEMPTS = 10
"""Maximum number of attempts to acquire a lease while other runs acquire it."""
_NAME = re.compile(r"lease-([0-9]{6,})")


class LeaseHeld(CaptionAssetsError):
    """Another run holds the shard's lease."""


class LeaseLost(CaptionAssetsError):
    """Another run claimed the shard, because this run did not renew its lease in time."""


class LeaseDamaged(CaptionAssetsError):
    """A lease whose holder cannot be read: another run may be writing the shard."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of a lease, as stored."""

    owner: str
    """The run. It is the same for all retries of a run, so that a retry can claim the lease at once."""
    process: str
    """Host and process id, for messages."""
    seconds: float
    """Lifetime of the lease without renewal, in seconds."""
    token: str
    """A unique token of the process."""
    released: bool = False

    @classmethod
    def parse(cls, data: bytes) -> Holder:
        """Parse a lease; fields of later releases are ignored.

        Raises:
            ValueError: if it is invalid.
        """
        record = json.loads(data)
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
        types = {"owner": str, "process": str, "seconds": int | float, "token": str, "released": bool}
        if wrong := [name for name, kind in types.items() if not isinstance(record.get(name), kind)]:
            raise ValueError(f"invalid {', '.join(wrong)}")
        if not 0 < record["seconds"] < inf:
            raise ValueError(f"invalid seconds {record['seconds']}")
        return cls(**{name: record[name] for name in types})

    def __str__(self) -> str:
        return f"{self.owner} ({self.process})"


@dataclass(slots=True)
class Lease:
    """A shard's lease that this process holds."""

    shard: str
    epoch: int
    """Number of the lease among the shard's leases, from 1."""
    loss: LeaseLost | None = None
    """The error, once the loss of the lease is detected."""


class Leases:
    """The leases that this process holds. Within the block a thread renews them: an engine's start blocks the loop.

    Each epoch of a lease is one object, created by a write that fails if the object exists: not every store has
    compare-and-swap. The creator of the highest epoch is the holder. Only the holder rewrites the object, to renew or
    to release the lease.

    Args:
        root: the root.
        owner: the run; the same for all its retries.
        seconds: lifetime of a lease without renewal.
        on_error: called with a message if a lease is lost, or if a renewal, a release or the removal of an old lease
            fails. Renewals are retried.
    """

    def __init__(
        self, root: Root, owner: str, seconds: float = 120.0, on_error: Callable[[str], None] = lambda _: None
    ) -> None:
        self._root = root
        self._seconds = seconds
        self._on_error = on_error
        self._own = Holder(owner, f"{socket.gethostname()}, process {os.getpid()}", seconds, uuid4().hex)
        self._held: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_all, name="lease renewer", daemon=True)

    def __enter__(self) -> Leases:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for lease in list(self._held.values()):
            self.release(lease)

    def acquire(self, shard: str) -> Lease:
        """Acquire a shard's lease, if it is new, released, expired, or held by an earlier attempt of this run.

        Raises:
            LeaseHeld: if another run holds it.
            LeaseDamaged: if the present lease is damaged, so that another run may hold it.
            StoreError: if the store cannot be read or written.
        """
        for _ in range(MAX_ATTEMPTS):
            newest = self._newest(shard)
            if newest:
                self._check_free(shard, newest)
            lease = Lease(shard, newest + 1)
            if self._root.create(_path(shard, lease.epoch), self._record()) and self._newest(shard) == lease.epoch:
                with self._lock:
                    self._held[shard] = lease
                self._remove_older(lease)
                return lease
        raise LeaseHeld(
            f"cannot acquire the lease of shard {shard!r} in {MAX_ATTEMPTS} attempts, because other runs acquire it: "
            "retry later"
        )

    def check(self, lease: Lease) -> None:
        """Check that the lease is still held.

        Raises:
            LeaseLost: if it is not.
        """
        if (newest := self._newest(lease.shard)) != lease.epoch:
            lease.loss = LeaseLost(self._loss(lease, newest))
            raise lease.loss

    def release(self, lease: Lease) -> None:
        """Release the lease. If that fails, it expires by itself."""
        with self._lock:
            self._held.pop(lease.shard, None)
        try:
            if self._newest(lease.shard) == lease.epoch:
                self._root.write(_path(lease.shard, lease.epoch), self._record(released=True))
        except Exception as error:
            self._on_error(f"cannot release the lease of shard {lease.shard!r}: {error}")

    def _loss(self, lease: Lease, newest: int) -> str:
        if newest < lease.epoch:
            place = self._root.address(_path(lease.shard, lease.epoch))
            return (
                f"the lease of shard {lease.shard!r} ({place}) was removed while this run captioned the shard: "
                "materialize it again; its checkpoints are reused"
            )
        try:
            holder = str(self._holder(lease.shard, newest) or "another run")
        except CaptionAssetsError:  # the loss is reported even if the new lease is damaged
            holder = "another run"
        return (
            f"shard {lease.shard!r} was claimed by {holder}, because this run did not renew its lease within "
            f"{self._seconds:g} s (CAPTION_LEASE_SECONDS): that run reuses what this one finished"
        )

    def _remove_older(self, lease: Lease) -> None:
        """Remove earlier leases. One that remains has no effect, because only the newest counts."""
        try:
            for epoch in self._epochs(lease.shard):
                if epoch < lease.epoch:
                    self._root.remove(_path(lease.shard, epoch))
        except Exception as error:
            self._on_error(f"cannot remove an old lease of shard {lease.shard!r}: {error}")

    def _check_free(self, shard: str, epoch: int) -> None:
        holder = self._holder(shard, epoch)
        if holder is None or holder.released or holder.owner == self._own.owner:
            return
        try:
            age = self._root.age(_path(shard, epoch))
        except FileNotFoundError:  # another run removed it at this moment
            return
        if age < holder.seconds:
            raise LeaseHeld(
                f"shard {shard!r} is being captioned by {holder}, which renewed its lease {age:.0f} s ago: wait until "
                f"it ends, or until {holder.seconds:g} s without a renewal have passed (CAPTION_LEASE_SECONDS)"
            )

    def _renew_all(self) -> None:
        while not self._ended.wait(self._seconds / RENEWALS):
            with self._lock:
                held = list(self._held.values())
            for lease in held:
                self._renew(lease)

    def _renew(self, lease: Lease) -> None:
        try:
            self.check(lease)
            with self._lock:  # so that a lease is not renewed after its release
                if self._held.get(lease.shard) is lease:
                    self._root.write(_path(lease.shard, lease.epoch), self._record())
        except LeaseLost as error:
            with self._lock:
                self._held.pop(lease.shard, None)
            self._on_error(str(error))
        except Exception as error:  # any error of the store may be temporary
            self._on_error(f"cannot renew the lease of shard {lease.shard!r}: {error}")

    def _newest(self, shard: str) -> int:
        return max(self._epochs(shard), default=0)

    def _epochs(self, shard: str) -> list[int]:
        found = map(_NAME.fullmatch, self._root.names(checkpoint_folder(shard)))
        return [int(name[1]) for name in found if name]

    def _holder(self, shard: str, epoch: int) -> Holder | None:
        """The holder of a lease; None if the lease was removed.

        Raises:
            LeaseDamaged: if the lease is damaged.
        """
        path = _path(shard, epoch)
        try:
            return Holder.parse(self._root.read(path))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise LeaseDamaged(
                f"the lease {self._root.address(path)} is damaged ({printable(str(error))}), and another run may be "
                f"captioning shard {shard!r}: if none is, remove that file and materialize the shard again"
            ) from error

    def _record(self, *, released: bool = False) -> bytes:
        return json.dumps({**asdict(self._own), "released": released}).encode()


def is_lease(path: str) -> bool:
    """Whether an object of a shard's checkpoint folder is a lease."""
    return _NAME.fullmatch(posixpath.basename(path)) is not None


def _path(shard: str, epoch: int) -> str:
    return f"{checkpoint_folder(shard)}/lease-{epoch:06}"
