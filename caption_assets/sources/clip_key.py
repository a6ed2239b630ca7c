"""Names of files, as strangers write them, made into keys of clips."""

from __future__ import annotations

from collections import Counter

from caption_assets.errors import UnreadableClip


def normalise(name: str) -> str:
    """``name`` as a relative path in valid UTF-8: no empty or ``.`` parts, ``..`` as ``__``, lone surrogates escaped.

    Python reads file names that are not UTF-8 with lone surrogates in them, which no table can hold.
    """
    text = name.encode("utf-8", "backslashreplace").decode()
    return "/".join("__" if part == ".." else part for part in text.split("/") if part not in ("", "."))


def escapes_root(name: str) -> bool:
    """Whether ``name`` is absolute or climbs: nothing of a shard may be called so, even if it would come back."""
    return name.startswith("/") or ".." in name.split("/")


class KeyAllocator:
    """Gives each clip of a shard a key of its own."""

    def __init__(self) -> None:
        self._kept: set[str] = set()
        self._taken: set[str] = set()
        self._numbers: Counter[str] = Counter()

    def allocate(self, name: str, refusal: UnreadableClip | None) -> tuple[str, UnreadableClip | None]:
        """The key for a clip called ``name``, and why the clip is refused, if it is.

        The first clip of a name is kept, later ones are refused. A key that is taken gets ``#2``, ``#3`` and so on. A
        refused clip makes no other a duplicate.

        Args:
            name: as the folder, tar or list has it.
            refusal: why the clip is refused already, whatever its name.
        """
        key = normalise(name)
        if refusal is None and escapes_root(name):
            refusal = UnreadableClip(
                "outside", f"the name {name!r} is absolute or has '..' in it: name the clip relative to its root"
            )
        if refusal is None and key in self._kept:
            refusal = UnreadableClip(
                "duplicate", f"the shard has another clip called {key!r}, which is kept: rename one"
            )
        if refusal is None:
            self._kept.add(key)
        return self._free(key or "_"), refusal

    def _free(self, key: str) -> str:
        free = key
        while free in self._taken:
            self._numbers[key] += 1
            free = f"{key}#{self._numbers[key] + 1}"
        self._taken.add(free)
        return free
