"""The right to write a shard's captions, which one run has at a time."""

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
"""In the time of a lease: two may fail before it expires."""
TRIES = 10
"""To take a lease while others take it as well."""
_NAME = re.compile(r"lease-([0-9]{6,})")


class LeaseHeld(CaptionAssetsError):
    """Another run is writing the shard."""


class LeaseLost(CaptionAssetsError):
    """Another run has taken the shard over, since this one was not heard of in time."""


class LeaseDamaged(CaptionAssetsError):
    """A lease that does not say who holds it: whether another run is writing the shard is unknown."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, as it stands in the store."""

    owner: str
    """Of all tries of one run the same: each may take over from the last at once."""
    process: str
    """Machine and process, for a person."""
    seconds: float
    """For how long it holds without being renewed."""
    token: str
    """Unlike any other's."""
    released: bool = False

    @classmethod
    def parse(cls, data: bytes) -> Holder:
        """The holder from a lease's bytes; fields that a later version has added are left out.

        Raises:
            ValueError: if they are no such record.
        """
        record = json.loads(data)
        if not isinstance(record, dict):
            raise ValueError("it is no JSON object")
        types = {"owner": str, "process": str, "seconds": int | float, "token": str, "released": bool}
        if wrong := [name for name, kind in types.items() if not isinstance(record.get(name), kind)]:
            raise ValueError(f"without a usable {', '.join(wrong)}")
        if not 0 < record["seconds"] < inf:
            raise ValueError(f"seconds are {record['seconds']}")
        return cls(**{name: record[name] for name in types})

    def __str__(self) -> str:
        return f"{self.owner} ({self.process})"


@dataclass(slots=True)
class Lease:
    """A shard's lease in the hands of this process."""

    shard: str
    epoch: int
    """Counts the shard's holders, from 1."""
    loss: LeaseLost | None = None
    """That another run has taken it over, once that is known."""

    @property
    def lost(self) -> bool:
        """Whether another run is known to have taken it over."""
        return self.loss is not None


class Leases:
    """The leases that this process holds. Within the block a thread renews them: an engine's start holds the loop.

    A lease is an object of its epoch, made by a write that fails if there is one already, since not every store can
    replace an object only if it is unchanged. Whoever has made the highest epoch is the holder, and alone writes it
    again, to renew or to release it.

    Args:
        root: where the leases lie.
        owner: of all tries of one run the same.
        seconds: for how long a lease holds without being renewed.
        on_trouble: told of a renewal that failed; it is tried again.
    """

    def __init__(
        self, root: Root, owner: str, seconds: float = 120.0, on_trouble: Callable[[str], None] = lambda _: None
    ) -> None:
        self._root = root
        self._seconds = seconds
        self._on_trouble = on_trouble
        self._me = Holder(owner, f"{socket.gethostname()}, process {os.getpid()}", seconds, uuid4().hex)
        self._held: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew_all, name="lease renewer", daemon=True)

    def __enter__(self) -> Leases:
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._renewer.join()
        for lease in list(self._held.values()):
            self.release(lease)

    def take(self, shard: str) -> Lease:
        """The shard's lease: a new one, one that was released or has expired, or that of an earlier try of this run.

        Raises:
            LeaseHeld: if another run has it.
            LeaseDamaged: if it cannot be told whether another run has it.
            StoreError: if the store cannot be read or written.
        """
        for _ in range(TRIES):
            newest = self._newest(shard)
            if newest:
                self._check_free(shard, newest)
            lease = Lease(shard, newest + 1)
            if self._root.create(_path(shard, lease.epoch), self._record()) and self._newest(shard) == lease.epoch:
                with self._lock:
                    self._held[shard] = lease
                self._remove_older(lease)
                return lease
        raise LeaseHeld(f"shard {shard!r} is taken by one run after another: try again later")

    def check(self, lease: Lease) -> None:
        """Make sure that the lease is still held.

        Raises:
            LeaseLost: if it is not.
        """
        if (newest := self._newest(lease.shard)) != lease.epoch:
            lease.loss = LeaseLost(self._loss(lease, newest))
            raise lease.loss

    def release(self, lease: Lease) -> None:
        """Leave the shard to others. If the store does not take that, the lease expires by itself."""
        with self._lock:
            self._held.pop(lease.shard, None)
        try:
            if self._newest(lease.shard) == lease.epoch:
                self._root.write(_path(lease.shard, lease.epoch), self._record(released=True))
        except Exception as error:
            self._on_trouble(f"the lease of shard {lease.shard!r} could not be released: {error}")

    def _loss(self, lease: Lease, newest: int) -> str:
        if newest < lease.epoch:
            place = self._root.address(_path(lease.shard, lease.epoch))
            return (
                f"the lease of shard {lease.shard!r} ({place}) was removed while this run captioned it: "
                "materialize it again; what was kept in checkpoints is taken over"
            )
        try:
            holder = str(self._holder(lease.shard, newest) or "another run")
        except CaptionAssetsError:  # whoever it is
            holder = "another run"
        return (
            f"shard {lease.shard!r} was taken over by {holder}, since this run did not renew its lease within "
            f"{self._seconds:g} s (CAPTION_LEASE_SECONDS): what it has finished is left to that run"
        )

    def _remove_older(self, lease: Lease) -> None:
        """Remove the leases before one. Those that stay do no harm: the newest counts."""
        try:
            for epoch in self._epochs(lease.shard):
                if epoch < lease.epoch:
                    self._root.remove(_path(lease.shard, epoch))
        except Exception as error:
            self._on_trouble(f"an old lease of shard {lease.shard!r} could not be removed: {error}")

    def _check_free(self, shard: str, epoch: int) -> None:
        holder = self._holder(shard, epoch)
        if holder is None or holder.released or holder.owner == self._me.owner:
            return
        try:
            age = self._root.age(_path(shard, epoch))
        except FileNotFoundError:  # taken over at this moment
            return
        if age < holder.seconds:
            raise LeaseHeld(
                f"shard {shard!r} is being captioned by {holder}, which was heard of {age:.0f} s ago: wait until it is "
                f"done, or until {holder.seconds:g} s have passed since (CAPTION_LEASE_SECONDS)"
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
            with self._lock:  # not after its release
                if self._held.get(lease.shard) is lease:
                    self._root.write(_path(lease.shard, lease.epoch), self._record())
        except LeaseLost as error:
            with self._lock:
                self._held.pop(lease.shard, None)
            self._on_trouble(str(error))
        except Exception as error:  # whatever ails the store, the next renewal may succeed
            self._on_trouble(f"the lease of shard {lease.shard!r} could not be renewed: {error}")

    def _newest(self, shard: str) -> int:
        return max(self._epochs(shard), default=0)

    def _epochs(self, shard: str) -> list[int]:
        found = map(_NAME.fullmatch, self._root.names(checkpoint_folder(shard)))
        return [int(name[1]) for name in found if name]

    def _holder(self, shard: str, epoch: int) -> Holder | None:
        """Who made a lease; None if it has gone.

        Raises:
            LeaseDamaged: if it does not say.
        """
        path = _path(shard, epoch)
        try:
            return Holder.parse(self._root.read(path))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise LeaseDamaged(
                f"the lease {self._root.address(path)} is damaged ({printable(str(error))}): another run may be "
                f"captioning shard {shard!r}: if none is, remove that file and materialize the shard again"
            ) from error

    def _record(self, *, released: bool = False) -> bytes:
        return json.dumps({**asdict(self._me), "released": released}).encode()


def is_lease(path: str) -> bool:
    """Whether an object of a shard's checkpoint folder is a lease."""
    return _NAME.fullmatch(posixpath.basename(path)) is not None


def _path(shard: str, epoch: int) -> str:
    return f"{checkpoint_folder(shard)}/lease-{epoch:06}"
