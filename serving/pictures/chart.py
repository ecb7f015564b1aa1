"""Charts of horizontal bars as SVG that is complete when saved alone, and that a page may style and stretch.

Places along the bars are percentages and everything else is in pixels, so that a chart that a style sheet makes wider
or narrower keeps the size of its text. Colours are attributes, which any style sheet overrides by class: `background`,
`title`, `note`, `name`, `value`, `number`, `rise`, `fall`, `size`, `tip`, `mark`, `link`, `grid`, `tick`. There is
neither script nor style in it, so a strict Content-Security-Policy lets it stand inside a page.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import accumulate
from typing import Literal

SVG = b"image/svg+xml"
"""The media type of pictures."""

WIDTH = 640
"""Pixels; names are cut to fit, so a chart for a narrower place is drawn with its width."""

MARGIN, INSIDE = 2.0, 96.0
"""Per cent of the width: before the bars, and of the bars."""

TITLE_PIXELS, TEXT_PIXELS, NOTE_PIXELS = 15, 13, 12
ROW_PIXELS, BAR_PIXELS, AXIS_PIXELS = 38, 12, 40

Kind = Literal["rise", "fall", "size", "mark"]

COLOURS: dict[Kind, str] = {"rise": "#d9690f", "fall": "#08519c", "size": "#08519c", "mark": "#111111"}
"""One is light and one is dark, so that they differ in grey and for every kind of colour blindness."""

INK, PALE, GRID, PAPER = "#111111", "#555555", "#dddddd", "#ffffff"

NOT_SHOWN = re.compile(
    r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
"""Characters that XML does not allow, and those that would change the direction of the text beside them."""

MAX_HINT_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Bar:
    """A line of a chart: a name, a number, and below them a bar from `start` to `end`, in the units of the axis."""

    name: str
    number: str
    start: float
    end: float
    kind: Kind
    value: str = ""
    """Stands after the name, behind an equals sign."""
    hint: str = ""
    """Shown when the pointer rests on the line, below the whole name."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars over one axis. `linked` bars begin where the one before ended, and a line says so."""

    title: str
    notes: Sequence[str]
    bars: Sequence[Bar]
    axis: str
    """What the numbers are, below the axis."""
    linked: bool = False

    @property
    def pixels(self) -> int:
        return 34 + 18 * len(self.notes) + ROW_PIXELS * len(self.bars) + AXIS_PIXELS


def draw(charts: Sequence[Chart], width: int = WIDTH) -> str:
    """Charts below each other, as one SVG document."""
    top, panels = 0, []
    for chart in charts:
        panels.append(_Panel(chart, top, width).drawn())
        top += chart.pixels
    return _tag(
        "svg",
        "chart",
        _tag("rect", "background", width="100%", height="100%", fill=PAPER),
        *panels,
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=top,
        role="img",
        aria_label=_text("; ".join(map(_summary, charts))),
        font_family="system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
    )


def html_page(title: str, picture: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One self-contained HTML file: a picture, and below it the table of what it shows."""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{_text(title)}</title>
<style>
body {{ font: 15px system-ui, sans-serif; color: {INK}; background: {PAPER}; }}
body {{ max-width: 60em; margin: 1em auto; padding: 0 8px; }}
svg {{ width: 100%; }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ padding: 3px 6px; border-bottom: 1px solid {GRID}; text-align: left; overflow-wrap: anywhere; }}
</style>
</head>
<body>
{picture}
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</body>
</html>
"""


def number_text(value: float, *, signed: bool = False) -> str:
    """A number with four digits and a real minus sign."""
    return (f"{value + 0.0:+.4g}" if signed else f"{value + 0.0:.4g}").replace("-", "\N{MINUS SIGN}")


def shown(text: str) -> str:
    """A text without characters that cannot be shown or would turn others around."""
    return NOT_SHOWN.sub("\N{REPLACEMENT CHARACTER}", text)


def shorten(text: str, most: float) -> str:
    """A text of one line that is at most `most` em wide, which is estimated; what is cut off leaves an ellipsis."""
    text = " ".join(shown(text[: 4 * MAX_HINT_CHARACTERS]).split())
    ends = list(accumulate(map(_em, text)))
    if ends and ends[-1] > most:
        return text[: bisect_right(ends, most - 1.0)].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return text


@cache
def _em(character: str) -> float:
    """About how wide a character is in usual fonts, in em."""
    if unicodedata.combining(character):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.0
    if character in "ijlI.,:;'|!()[] ft":
        return 0.36
    return 0.9 if character in "mwMW@%" or ord(character) > 0x2000 else 0.7 if character.isupper() else 0.58


def _width(text: str) -> float:
    return sum(map(_em, text))


def _summary(chart: Chart) -> str:
    return " - ".join((chart.title, *chart.notes))


def _text(text: str) -> str:
    """A text as it may stand in XML, also as an attribute."""
    return escape(shown(text))


def _tag(tag: str, kind: str, *content: str, **attributes: str | float) -> str:
    """An element of a class; `content` is XML already, and in the names of attributes `_` stands for `-`."""
    if kind:
        attributes = {"class": kind, **attributes}
    own = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f"<{tag}{own}>{''.join(content)}</{tag}>" if content else f"<{tag}{own}/>"


def _hint(*lines: str) -> str:
    """The text that is shown when the pointer rests on an element: its first child."""
    return _tag("title", "", _text("\n".join(line[:MAX_HINT_CHARACTERS] for line in lines if line)))


class _Panel:
    """Draws one chart below `top`, in pixels."""

    def __init__(self, chart: Chart, top: int, width: int) -> None:
        self._chart, self._top, self._width = chart, top, width
        ends = [end for bar in chart.bars for end in (bar.start, bar.end)] or [0.0]
        self._axis = Axis.over(min(ends), max(ends))

    def drawn(self) -> str:
        chart, y = self._chart, self._top + 24
        parts = [self._line("title", chart.title, y, TITLE_PIXELS, INK, font_weight="bold")]
        for note in chart.notes:
            y += 18
            parts.append(self._line("note", note, y, NOTE_PIXELS, PALE))
        first = y + 10
        bars = [self._bar(bar, first + ROW_PIXELS * index, index) for index, bar in enumerate(chart.bars)]
        inside = (*self._grid(first, first + ROW_PIXELS * len(bars)), *bars)
        # percentages inside are along the bars
        return _tag(
            "g", "panel", *parts, _tag("svg", "", *inside, x=f"{MARGIN}%", width=f"{INSIDE}%", overflow="visible")
        )

    def _line(self, kind: str, text: str, y: int, size: int, fill: str, **attributes: str) -> str:
        """A line of text over the whole width."""
        cut = shorten(text, self._width * INSIDE / 100 / size * (0.92 if attributes else 1.0))
        content = [_text(cut)] if cut == text else [_hint(text), _text(cut)]
        return _tag("text", kind, *content, x=f"{MARGIN}%", y=y, fill=fill, font_size=size, **attributes)

    def _grid(self, first: int, last: int) -> Iterator[str]:
        for place, text in self._axis.ticks:
            percent = self._axis.percent(place)
            x, anchor = f"{percent:.4g}%", "start" if percent < 3 else "end" if percent > 97 else "middle"
            yield _tag("line", "grid", x1=x, x2=x, y1=first, y2=last + 4, stroke=GRID)
            yield self._tick(text, x, last + 17, anchor)
        yield self._tick(shorten(self._chart.axis, self._width / NOTE_PIXELS), "50%", last + 33, "middle")

    def _tick(self, text: str, x: str, y: int, anchor: str) -> str:
        return _tag("text", "tick", _text(text), x=x, y=y, fill=PALE, font_size=NOTE_PIXELS, text_anchor=anchor)

    def _bar(self, bar: Bar, top: int, index: int) -> str:
        return _tag(
            "g",
            f"bar {bar.kind}",
            _hint(f"{bar.name} = {bar.value}" if bar.value else bar.name, bar.hint),
            # what the pointer may rest on: all of the line
            _tag("rect", "", y=top, width="100%", height=ROW_PIXELS, fill="none", pointer_events="all"),
            *self._shapes(bar, top + 18, linked=self._chart.linked and index > 0),
            *self._words(bar, top + 13),
            data_index=index,
        )

    def _shapes(self, bar: Bar, y: int, *, linked: bool) -> Iterator[str]:
        """The bar, and the link to the one before."""
        from_percent, to_percent = self._axis.percent(bar.start), self._axis.percent(bar.end)
        start, end = f"{from_percent:.4g}%", f"{to_percent:.4g}%"
        if linked:
            above = y - ROW_PIXELS + BAR_PIXELS
            yield _tag("line", "link", x1=start, x2=start, y1=above, y2=y, stroke=PALE, stroke_dasharray="1 3")
        colour = COLOURS[bar.kind]
        if bar.kind == "mark":
            path = _tag("path", "mark", d="M0 0L6 6L0 12L-6 6Z", fill=colour)
            yield _tag("svg", "", path, x=end, y=y, overflow="visible")
            return
        left = start if from_percent < to_percent else end
        for x, width in ((left, f"{abs(to_percent - from_percent):.4g}%"), (end, "1")):  # so that none at all is seen
            yield _tag("rect", bar.kind, x=x, y=y, width=width, height=BAR_PIXELS, fill=colour)
        if bar.kind != "size":
            arrow = "M-8 2.5L-4 6L-8 9.5" if bar.kind == "rise" else "M8 2.5L4 6L8 9.5"
            path = _tag("path", "tip", d=arrow, fill="none", stroke=PAPER, stroke_width=1.6)
            yield _tag("svg", "", path, x=end, y=y, overflow="visible")

    def _words(self, bar: Bar, y: int) -> Iterator[str]:
        """The name and the value to the left, the number to the right."""
        most = self._width * INSIDE / 100 / TEXT_PIXELS - _width(bar.number) - 1.5
        value = shorten(bar.value, max(most / 3, most - _width(bar.name) - 2.0)) if bar.value else ""
        # lines behind a text stop around it
        halo: dict[str, str | float] = {
            "paint_order": "stroke",
            "stroke": PAPER,
            "stroke_width": 4,
            "stroke_linejoin": "round",
        }
        words = [_tag("tspan", "", _text(shorten(bar.name, most - (_width(value) + 1.5 if value else 0.0))))]
        if value:
            words.append(_tag("tspan", "value", f"\N{NO-BREAK SPACE}= {_text(value)}", fill=PALE))
        yield _tag("text", "name", *words, y=y, fill=INK, font_size=TEXT_PIXELS, **halo)
        number = _text(bar.number)
        yield _tag("text", "number", number, x="100%", y=y, fill=INK, font_size=TEXT_PIXELS, text_anchor="end", **halo)


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high` in 100 per cent; `ticks` are round numbers and their texts."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def over(cls, low: float, high: float) -> Axis:
        """An axis a little wider than from `low` to `high`, unless that is 0."""
        span = high - low
        if not math.isfinite(span):  # of the largest numbers that there are
            return cls(low, high, [(low, number_text(low)), (high, number_text(high))])
        if span <= max(1e-12 * max(abs(low), abs(high)), 1e-300):
            span = abs(high) if abs(high) > 1e-300 else 1.0
            low, high = low - span / 2, high + span / 2
        # bars that all begin at 0 begin where the names do
        low, high = low and low - span * 0.03, high and high + span * 0.03
        return cls(low, high, _ticks(low, high))

    def percent(self, value: float) -> float:
        return 100 * ((value / 2 - self.low / 2) / (self.high / 2 - self.low / 2))


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Three to seven round numbers."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span))
    step = next(step for step in (power / 5, power / 2, power, 2 * power, 5 * power) if span / step <= 7)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [(step * n, number_text(round(step * n, 12 - math.floor(math.log10(step))))) for n in range(first, last + 1)]
