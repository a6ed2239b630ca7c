"""A CABAC encoder of one skipped macroblock.

Sections and tables are those of ITU-T H.264 (08/2021).
"""

from __future__ import annotations

SKIP_CONTEXTS = ((18, 64), (26, 34), (20, 40))
"""The initial state ``m`` and ``n`` of ``mb_skip_flag`` in B slices without neighbors, ``ctxIdx`` 24, for each
``cabac_init_idc`` (table 9-14)."""
LPS_RANGES = (
    *(240, 227, 216, 205, 195, 185, 175, 166, 158, 150, 142, 135, 128, 122, 116, 110),
    *(104, 99, 94, 89, 85, 80, 76, 72, 69, 65, 62, 59, 56, 53, 50, 48),
    *(45, 43, 41, 39, 37, 35, 33, 31, 30, 28, 27, 25, 24, 23, 22, 21),
    *(20, 19, 18, 17, 16, 15, 14, 14, 13, 12, 12, 11, 11, 10, 9, 2),
)
"""The range of the less probable value in each state, if the whole range is at its maximum (table 9-44)."""
INITIAL_RANGE = 510
"""The range at the beginning of a slice (section 9.3.1.2)."""
MAX_QUANTIZER = 51


def skipped_macroblock(table: int, quantizer: int) -> str:
    """The data, as zeros and ones, of a B slice that consists of one skipped macroblock.

    A decoder reads an offset of 9 bits and compares it with the range of each value (section 9.3.3.2). The end of the
    slice takes the last two values of the range.

    Args:
        table: ``cabac_init_idc`` of the slice.
        quantizer: quantization parameter of the slice.
    """
    slope, start = SKIP_CONTEXTS[table]
    state = min(max((slope * min(max(quantizer, 0), MAX_QUANTIZER) >> 4) + start, 1), 126)  # section 9.3.1.1
    skipping = INITIAL_RANGE - LPS_RANGES[state - 64] if state > 63 else INITIAL_RANGE  # the end of its range
    return f"{skipping - 1:09b}" + "1" * 7
