"""Turns figures of traffic into one HTML page with charts, to look at and to print.

The rule that must stay true: the page fetches nothing and runs nothing, and a name from a PBX is
text in it, whatever its characters.
"""

import importlib
import importlib.util
import sys
from html import escape
from typing import Any, Final, NamedTuple

from cdrd.commands.report_sheet import FIGURES, NAMELESS, TOTAL, Sheet
from cdrd.traffic import TIMES

MAX_TIMES: Final = 31 * 24 + 1
"""The bars of a chart of hours or days: a month's hours, one of which may happen twice."""

MAX_NAMES: Final = 40
"""The bars of a chart of other groups: those with the most calls."""

LABELS: Final = 40
UNITS: Final = {name: f"{name} (s)" for name in ("acd", "talk_time", "longest")}


class Chart(NamedTuple):
    """What a chart shows: figures, each in its colour."""

    title: str
    figures: tuple[tuple[str, str], ...]
    stacked: bool = False


_CHARTS: Final = (
    Chart("Calls", (("answered", "#2a7f62"), ("missed", "#c8553d")), stacked=True),
    Chart("Calls at once", (("peak_concurrency", "#3d5a80"), ("erlangs", "#98a9c0"))),
    Chart("Seconds of talk", (("talk_time", "#7a6c9d"),)),
)

_STYLE: Final = {
    "background": "transparent",
    "plot_background": "transparent",
    "font_family": "sans-serif",
    "opacity": "1",
    "guide_stroke_color": "#dddddd",
    "major_guide_stroke_color": "#dddddd",
    "guide_stroke_dasharray": "none",
    "major_guide_stroke_dasharray": "none",
}
_LAYOUT: Final = {
    "width": 1000,
    "height": 320,
    "js": (),
    "legend_at_bottom": True,
    "show_minor_x_labels": False,
    "truncate_label": 24,
    "include_x_axis": True,
    "disable_xml_declaration": True,
    "no_data_text": "",
}

_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 14px/1.4 sans-serif; color: #1b1b1b; background: #fff; margin: 2em auto;
  max-width: 80em; padding: 0 1em; }}
h1 {{ font-size: 1.4em; }}
h2 {{ font-size: 1.1em; margin: 2em 0 0; }}
figure {{ margin: 0; break-inside: avoid; }}
figure svg {{ width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3em .5em; font-size: .9em; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 6em; }}
thead th {{ border-bottom: 2px solid #1b1b1b; vertical-align: bottom; }}
tbody td {{ border-bottom: 1px solid #ddd; }}
tbody tr:last-child td {{ border: 0; border-top: 2px solid #1b1b1b; font-weight: bold; }}
p {{ color: #555; }}
@page {{ size: A4 landscape; margin: 12mm; }}
@media print {{
  body {{ margin: 0; max-width: none; padding: 0; font-size: 9pt; }}
  .wide {{ overflow: visible; }}
  thead {{ display: table-header-group; }}
  tr {{ break-inside: avoid; }}
}}
</style>
</head>
<body>
<h1>{title}</h1>
{charts}
<h2>Figures</h2>
<div class="wide">
<table>
<thead><tr>{headings}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<p>asr: share answered. acd: average talk of the answered, in seconds. busiest_hour: the clock hour
of the most traffic, and erlangs the average of calls at once in it. peak_concurrency: the most
calls at once.</p>
</body>
</html>
"""


class NoCharts(Exception):
    """What draws the charts is not installed; the text says how to install it."""


def check_charts() -> None:
    """Raise NoCharts where there is no pygal."""
    if importlib.util.find_spec("pygal") is None:
        raise NoCharts("--format html needs pygal for its charts: pip install 'cdrd[html]'")


def sheet_page(sheet: Sheet) -> str:
    """Return the page. There is a pygal."""
    headings = [sheet.by or "", *(UNITS.get(name, name) for name in FIGURES)]
    return _PAGE.format(
        title=_text(sheet.title),
        charts=_charts(sheet),
        headings=_cells("th", headings),
        rows="\n".join(f"<tr>{_cells('td', row)}</tr>" for row in sheet.rows()),
    )


def _cells(tag: str, texts: list[str]) -> str:
    return "".join(f"<{tag}>{_text(text)}</{tag}>" for text in texts)


def _text(text: str) -> str:
    return escape(_visible(text))


def _visible(text: str) -> str:
    """Leave out what neither HTML nor XML can hold: control characters, lone surrogates."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def _charts(sheet: Sheet) -> str:
    groups = list(sheet.traffic.groups.items())
    remark = ""
    if sheet.by is None:
        groups = [(TOTAL, sheet.traffic.total)]
    elif sheet.by in TIMES and len(groups) > MAX_TIMES:
        return f"<p>{len(groups)} are too many for charts: choose a shorter range, or days.</p>"
    elif sheet.by not in TIMES and len(groups) > MAX_NAMES:
        remark = f"<p>The charts show the {MAX_NAMES} of {len(groups)} with the most calls.</p>"
        groups = groups[:MAX_NAMES]
    names = [_visible(NAMELESS if group is None else group) for group, _ in groups]
    rows = [figures.row() for _, figures in groups]
    drawn = [_chart(names, rows, chart) for chart in _CHARTS if rows]
    return remark + "\n".join(f"<figure>{chart}</figure>" for chart in drawn)


def _chart(names: list[str], rows: list[dict[str, Any]], chart: Chart) -> str:
    """Draw a chart as SVG, with no script in it and no link."""
    pygal = _pygal()
    colors = tuple(color for _, color in chart.figures)
    drawing = (pygal.StackedBar if chart.stacked else pygal.Bar)(
        **_LAYOUT,
        title=chart.title,
        style=pygal.style.Style(**_STYLE, colors=colors),
        x_label_rotation=40 if len(names) > 4 else 0,
        x_labels_major_every=-(-len(names) // LABELS),
    )
    drawing.uuid = chart.title.lower().replace(" ", "-")  # by chance else, and so each time another
    drawing.x_labels = names
    for figure, _ in chart.figures:
        drawing.add(figure, [row[figure] for row in rows])
    drawing.add_xml_filter(_without_scripts)
    svg: str = drawing.render(is_unicode=True)
    return svg


def _pygal() -> Any:
    """Import pygal, an extra which only this needs, without the import hook that it installs.

    The hook is for its maps, and of a kind that makes Python 3.11 warn at each later import.
    """
    hooks = list(sys.meta_path)
    pygal = importlib.import_module("pygal")
    sys.meta_path[:] = hooks
    return pygal


def _without_scripts(root: Any) -> Any:
    """Take out what pygal puts in for its own script, and the comments that name its site."""
    for parent in list(root.iter()):
        for child in list(parent):
            if callable(child.tag) or child.tag.endswith("script"):
                parent.remove(child)
    return root
