"""A bit reader for the headers of coded pictures."""

from __future__ import annotations

MAX_ZEROS = 32
"""Maximum number of leading zeros of an Exp-Golomb code in a header (ITU-T H.264, section 9.1)."""


class Bits:
    """Reads bits, most significant first."""

    def __init__(self, data: bytes) -> None:
        self._size = self._left = len(data) * 8
        self._value = int.from_bytes(data)

    @property
    def before(self) -> str:
        """The bits that were read, as zeros and ones."""
        count = self._size - self._left
        return f"{self._value >> self._left:0{count}b}" if count else ""

    def read(self, count: int) -> int:
        """The next ``count`` bits as a number.

        Raises:
            ValueError: if there are fewer.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError("truncated header")
        return self._value >> self._left & ((1 << count) - 1)

    def read_ue(self) -> int:
        """The next unsigned Exp-Golomb code, ``ue(v)`` in ITU-T H.264 and H.265.

        Raises:
            ValueError: if there is none.
        """
        zeros = self._left - (self._value & ((1 << self._left) - 1)).bit_length()
        if zeros > MAX_ZEROS:
            raise ValueError(f"invalid Exp-Golomb code: more than {MAX_ZEROS} leading zeros")
        self.read(zeros + 1)
        return (1 << zeros) - 1 + self.read(zeros)

    def read_se(self) -> int:
        """The next signed Exp-Golomb code, ``se(v)`` in ITU-T H.264 and H.265.

        Raises:
            ValueError: if there is none.
        """
        code = self.read_ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)
