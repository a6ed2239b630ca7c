"""Clip keys: unique, relative names of clips, made from untrusted file names."""

from __future__ import annotations

from collections import Counter

from caption_assets.errors import UnreadableClip, printable


def normalize(name: str) -> str:
    """A name as a relative path in valid UTF-8: no empty or ``.`` parts, ``..`` as ``__``, lone surrogates escaped.

    Python decodes file names that are not UTF-8 to lone surrogates, which no table can store.
    """
    return "/".join("__" if part == ".." else part for part in printable(name).split("/") if part not in ("", "."))


def escapes_root(name: str) -> bool:
    """Whether a name is absolute or contains ``..``: both are refused, even if the path stays within the root."""
    return name.startswith("/") or ".." in name.split("/")


class KeyAllocator:
    """Assigns a unique key to each clip of a shard."""

    def __init__(self) -> None:
        self._accepted: set[str] = set()
        self._used: set[str] = set()
        self._numbers: Counter[str] = Counter()

    def allocate(self, name: str, refusal: UnreadableClip | None) -> tuple[str, UnreadableClip | None]:
        """The key of a clip, and the reason if the clip is refused.

        The first clip of a name that is not refused is accepted; later ones are refused as duplicates of it. If a key
        is in use, the next clip's key has the suffix ``#2``, ``#3`` and so on.

        Args:
            name: name of the clip in its folder, tar or list.
            refusal: the reason if the clip is refused already.
        """
        key = normalize(name)
        if refusal is None and escapes_root(name):
            refusal = UnreadableClip(
                "outside", f"the name {name!r} is absolute or contains '..': use a name relative to its root"
            )
        if refusal is None and key in self._accepted:
            refusal = UnreadableClip(
                "duplicate", f"the shard has another clip named {key!r}, which is used instead: rename one"
            )
        if refusal is None:
            self._accepted.add(key)
        return self._unique(key or "_"), refusal

    def _unique(self, key: str) -> str:
        unique = key
        while unique in self._used:
            self._numbers[key] += 1
            unique = f"{key}#{self._numbers[key] + 1}"
        self._used.add(unique)
        return unique
