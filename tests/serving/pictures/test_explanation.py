"""Waterfalls as SVG: well-formed, complete, and with nothing in them but what they show."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from serving.pictures.chart import Axis, shorten
from serving.pictures.explanation import waterfall, waterfall_page

SVG = "{http://www.w3.org/2000/svg}"

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</title></svg><script>alert(1)</script>",
    "\"' onload='alert(1)",
    "]]><!-- &lt; &#0; &unknown;",
    "\x00\x07\x1b[31m\ud800\ufffe",
    "\u202ednuora denrut\u2066",
    "W" * 200,
    "\N{CJK UNIFIED IDEOGRAPH-540D}" * 200,
    "",
)


def explained(values: dict[str, float], **more: Any) -> dict[str, Any]:
    base = 0.5
    return {
        "space": "probability",
        "method": "tree-path-dependent",
        "base_value": base,
        "output": base + sum(values.values()),
        "values": values,
    } | more


def bars(picture: str) -> list[Element]:
    return [one for one in ElementTree.fromstring(picture).iter(f"{SVG}g") if "bar" in one.get("class", "").split()]


def texts(element: Element) -> list[str]:
    return ["".join(text.itertext()) for text in element.iter(f"{SVG}text") for _ in [text]]


def percent(element: Element, name: str) -> float:
    found = element.get(name)
    assert found is not None
    assert found.endswith("%")
    return float(found[:-1])


def test_bars_lead_from_the_base_value_to_the_output_the_largest_first() -> None:
    picture = waterfall(explained({"a": 0.1, "b": -0.3, "c": 0.2}, label="yes"), {"a": 1, "b": None, "c": 2.5}, "m 1")
    first, *middle, last = bars(picture)
    assert texts(first) == ["base value", "0.5"]
    assert [texts(bar)[0].replace("\xa0", " ") for bar in middle] == ["b = missing", "c = 2.5", "a = 1"]
    assert [texts(bar)[1] for bar in middle] == ["\u22120.3", "+0.2", "+0.1"]
    assert texts(last) == ["output", "0.5"]
    assert [bar.get("class") for bar in middle] == ["bar fall", "bar rise", "bar rise"]
    assert "m 1: yes" in texts(ElementTree.fromstring(picture))
    ends = []
    for bar in middle:
        rectangle = next(one for one in bar.iter(f"{SVG}rect") if one.get("class"))
        ends.append((percent(rectangle, "x"), percent(rectangle, "x") + percent(rectangle, "width")))
    # from 0.5 down to 0.2, up to 0.4 and up to 0.5
    assert ends[0][0] == pytest.approx(ends[1][0])
    assert ends[1][1] == pytest.approx(ends[2][0])
    assert ends[2][1] == pytest.approx(ends[0][1])


@pytest.mark.parametrize("width", [360, 640])
def test_hostile_names_values_and_labels_are_text_and_nothing_else(width: int) -> None:
    values = {name: 0.1 * (place + 1) for place, name in enumerate(HOSTILE)}
    instance = {name: HOSTILE[-place] for place, name in enumerate(HOSTILE)}
    picture = waterfall(explained(values, label=HOSTILE[1]), instance, HOSTILE[0], width=width)
    tree = ElementTree.fromstring(picture.encode())
    tags = {one.tag.removeprefix(SVG) for one in tree.iter()}
    assert tags == {"svg", "rect", "g", "text", "tspan", "title", "line", "path"}
    attributes = {name for one in tree.iter() for name in one.attrib}
    assert not {name for name in attributes if name.startswith("on") or name in ("style", "href")}
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", picture)
    assert not re.search("style|script", re.sub('>[^<]*<|"[^"]*"', "", picture))


def test_a_long_name_is_cut_and_whole_in_the_tooltip() -> None:
    name = "a long name " * 16
    (_, bar, _) = bars(waterfall(explained({name: 1.0}), {name: "x" * 300}, "m 1", width=360))
    said = texts(bar)[0]
    assert said.startswith("a long name")
    assert said.count("\N{HORIZONTAL ELLIPSIS}") == 2
    assert len(said) < 60
    hint = bar.find(f"{SVG}title")
    assert hint is not None
    assert f"{name} = {'x' * 300}" in (hint.text or "")


def test_many_features_are_summed_as_others() -> None:
    values = {f"f{n}": 0.01 * n for n in range(1, 31)}
    _, *middle, _ = bars(waterfall(explained(values), dict.fromkeys(values, 1), "m 1", most=5))
    assert len(middle) == 5
    assert texts(middle[-1]) == ["26 other features", "+3.51"]
    summed = explained({"f1": 2.0, "f2": 1.0, "(other)": 5.0})
    _, *middle, _ = bars(waterfall(summed, {"f1": 1, "f2": 2}, "m 1", most=2))
    assert [texts(bar)[1] for bar in middle] == ["+2", "+6"]
    assert texts(middle[-1])[0] == "other features"


def test_each_output_has_a_waterfall_of_its_own() -> None:
    item = {"output": 1.0, "base_value": 0.0, "values": {"a": 1.0}}
    classes = {"space": "margin", "method": "linear", "classes": {"low": item, "high": item}, "label": "low"}
    found = texts(ElementTree.fromstring(waterfall(classes, {"a": 1}, "m 1")))
    assert {"m 1: low", "m 1: high"} <= set(found)
    targets = {"space": "value", "method": "exact", "targets": {"price": item, "rent": {"label": True} | item}}
    found = texts(ElementTree.fromstring(waterfall(targets, {"a": 1}, "m 1")))
    assert {"m 1: price", "m 1: rent: true"} <= set(found)


def test_sampled_values_show_their_standard_errors() -> None:
    sampled = explained({"a": 0.25}, sampled=True, standard_error={"a": 0.0123})
    assert texts(bars(waterfall(sampled, {"a": 1}, "m 1"))[1])[1] == "+0.25 \N{PLUS-MINUS SIGN} 0.012"


@pytest.mark.parametrize(
    ("base", "values"),
    [
        (0.0, [0.0, 0.0]),
        (1e308, [-1e308, -0.9e308]),
        (5e-324, [5e-324, 0.0]),
        (0.0, [5e-324, 0.0]),
        (1e16, [2.0, 0.0]),
        (-3.5, [0.0, -0.0]),
        (1e-300, [1.0, -1.0]),
    ],
)
def test_any_numbers_are_drawn_inside_the_picture(base: float, values: list[float]) -> None:
    item = {"output": base + values[0] + values[1], "base_value": base, "values": dict(zip("ab", values, strict=True))}
    picture = waterfall({"space": "value", "method": "linear"} | item, {"a": 1.0, "b": 2}, "m 1")
    places = [float(place) for place in re.findall(r'(?:x|x1|x2|width)="([^"]*)%"', picture)]
    assert places
    assert all(0.0 <= place <= 100.0 for place in places)


def test_lines_behind_a_text_stop_around_it() -> None:
    picture = waterfall(explained({"a": 0.25}), {"a": 1}, "m 1")
    texts_on_bars = re.findall(r'<text class="(?:name|number)"[^>]*>', picture)
    assert len(texts_on_bars) == 6
    assert all('paint-order="stroke" stroke="#ffffff"' in text for text in texts_on_bars)


def test_the_note_of_a_waterfall_fits_where_it_is_narrowest() -> None:
    picture = waterfall(explained({"a": 0.25}) | {"space": "margin"}, {"a": 1}, "m 1", width=330)
    assert "\N{HORIZONTAL ELLIPSIS}" not in picture
    assert "margin (log-odds)" in picture


def test_bars_that_begin_at_zero_begin_where_the_names_do() -> None:
    assert Axis.over(0.0, 3.0).percent(0.0) == 0.0
    assert Axis.over(-3.0, 0.0).percent(0.0) == 100.0
    assert 0.0 < Axis.over(1.0, 3.0).percent(1.0) < 3.0


def test_ticks_are_few_round_numbers() -> None:
    assert [text for _, text in Axis.over(0.37, 0.98).ticks] == ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]
    assert [text for _, text in Axis.over(-1.0, 1.0).ticks] == ["\u22121", "\u22120.5", "0", "0.5", "1"]
    assert [text for _, text in Axis.over(0.0, 3e6).ticks] == [
        "0",
        "5e+05",
        "1e+06",
        "1.5e+06",
        "2e+06",
        "2.5e+06",
        "3e+06",
    ]


def test_names_are_cut_to_the_width_of_their_characters() -> None:
    assert shorten("iiiiiiiiii", 4.0) == "iiiiiiiiii"
    assert shorten("MMMMMMMMMM", 4.0) == "MMM\N{HORIZONTAL ELLIPSIS}"
    assert shorten("two\nlines", 20.0) == "two lines"


def test_the_page_is_one_file_with_a_table_of_the_numbers() -> None:
    page = waterfall_page(explained({HOSTILE[0]: 0.1, "b": 0.2}), {HOSTILE[0]: HOSTILE[1], "b": 2}, "m 1", most=15)
    assert "<img" not in page
    assert "<script" not in page
    assert "<td>0.2</td>" in page
    assert not re.search(r"(?:src|href)=|url\(|@import", re.sub("&[^;]*;", "", page).replace("src=x", ""))
