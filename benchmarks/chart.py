"""The chart of ratios, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

import attrs

_COLORS = {"speed": "#3465a4", "CPU": "#e9a13b"}
_LEGEND = {"speed": "speed", "CPU": "jobs for a second of the server's CPU"}
_WIDTH, _LEFT, _RIGHT = 760, 230, 60
_TOP, _BAR, _GAP, _BOTTOM = 64, 13, 9, 16
# Nothing of a bar is left out, but no bar makes the axis longer than this on either side of 1.
_MOST = 1024.0


@attrs.frozen
class Bar:
    """A bar.

    Attributes:
        label: what it is of; bars that follow each other with the same label stand together.
        kind: ``speed`` or ``CPU``.
        times: how many times as good the first side is; less than 1 where it is behind.
    """

    label: str
    kind: str
    times: float


def chart(title: str, bars: Sequence[Bar]) -> str:
    """Draw bars to the right of a line at 1 where the first side is ahead, to the left where it is behind.

    Args:
        title: stands above.
        bars: from top to bottom, may be empty.

    Returns:
        The text of an SVG file. The axis is logarithmic.
    """
    reach = [min(max(bar.times, 1 / _MOST), _MOST) for bar in bars]
    low = math.floor(math.log2(min(reach, default=1)) - 0.5)
    high = math.ceil(math.log2(max(reach, default=1)) + 0.5)
    unit = (_WIDTH - _LEFT - _RIGHT) / (high - low)

    def x(times: float) -> float:
        return _LEFT + (math.log2(times) - low) * unit

    height = _TOP + _BOTTOM
    drawn: list[str] = []
    previous = None
    for bar, times in zip(bars, reach, strict=True):
        if bar.label != previous:
            height += _GAP if previous is not None else 0
            drawn.append(_text(_LEFT - 8, height - _BOTTOM + 11, bar.label, "end"))
            previous = bar.label
        y = height - _BOTTOM
        start, stop = sorted((x(1), x(times)))
        color = _COLORS[bar.kind]
        drawn.append(
            f'<rect x="{start:.1f}" y="{y}" width="{stop - start:.1f}" height="{_BAR - 2}" fill="{color}"/>'
        )
        # To the right of the bar, also of one that goes to the left: there is always room.
        drawn.append(_text(stop + 4, y + 10, f"{bar.times:.2f}" if bar.times < 10 else f"{bar.times:.0f}"))
        height += _BAR
    grid: list[str] = []
    for power in range(low, high + 1, max(1, (high - low) // 8)):
        times = 2.0**power
        grid.append(_line(x(times), _TOP - 6, height - 8, "#ddd"))
        grid.append(_text(x(times), _TOP - 10, f"{times:g}" if power >= 0 else f"1/{2**-power}", "middle"))
    grid.append(_line(x(1), _TOP - 6, height - 8, "#333"))
    legend: list[str] = []
    for position, (kind, meaning) in enumerate(_LEGEND.items()):
        left = _LEFT + position * 110
        legend.append(f'<rect x="{left}" y="28" width="11" height="11" fill="{_COLORS[kind]}"/>')
        legend.append(_text(left + 16, 38, meaning))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-size="12">',
            "<style>text { font-family: sans-serif }</style>",
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            f'<text x="12" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
            *legend,
            *grid,
            *drawn,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _line(x: float, top: float, bottom: float, color: str) -> str:
    return f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="{color}"/>'
