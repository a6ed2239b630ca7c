"""A bit reader, for the headers of coded pictures."""

from __future__ import annotations

MAX_ZEROS = 32
"""Leading zeros of the longest Exp-Golomb code that a header holds (ITU-T H.264, section 9.1)."""


class Bits:
    """Reads bits from the left."""

    def __init__(self, data: bytes) -> None:
        self._left = len(data) * 8
        self._value = int.from_bytes(data)

    def read(self, count: int) -> int:
        """The next ``count`` bits as a number.

        Raises:
            ValueError: if there are fewer.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError("the header ends too early")
        return self._value >> self._left & ((1 << count) - 1)

    def read_ue(self) -> int:
        """The next unsigned Exp-Golomb code, ``ue(v)`` in ITU-T H.264 and H.265.

        Raises:
            ValueError: if there is none.
        """
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > MAX_ZEROS:
                raise ValueError("no Exp-Golomb code")
        return (1 << zeros) - 1 + self.read(zeros)

    def read_se(self) -> int:
        """The next signed Exp-Golomb code, ``se(v)`` in ITU-T H.264 and H.265.

        Raises:
            ValueError: if there is none.
        """
        code = self.read_ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)
