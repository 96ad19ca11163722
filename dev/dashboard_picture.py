"""Draws the panels of the chart's two dashboards with what a Prometheus answers to their queries.

dashboard_picture.py URL NAMESPACE/DEPLOYMENT MINUTES OUTPUT

Each panel stands where the dashboard places it. It is a likeness, not Grafana: only what these dashboards use is drawn.
"""

import datetime
import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from PIL import Image

DASHBOARDS = Path(__file__).parent.parent / "charts/escadre/files/dashboards"
WIDTH = 14.0  # inches of the picture
CELL = 0.235  # inches of a row of the dashboard's grid
TITLE = 1.6  # rows for the title of a dashboard
DPI = 100
NAMED = {"green": "#37872d", "yellow": "#c99700", "red": "#c4162a", "blue": "#1f60c4", "orange": "#fa6400"}
SERIES = ["#56a64b", "#e0b400", "#3274d9", "#ff780a", "#a352cc", "#e02f44", "#0aa5b5", "#8f3bb8", "#7c4a03", "#6d7278"]


class Prometheus:
    def __init__(self, url, minutes):
        self.url = url.rstrip("/")
        self.end = time.time()
        self.start = self.end - 60 * minutes
        self.step = max(5, round(minutes * 60 / 150))

    def ask(self, path, **parameters):
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]["result"]

    def over_time(self, query):
        return self.ask("/api/v1/query_range", query=query, start=self.start, end=self.end, step=self.step)

    def now(self, query):
        return self.ask("/api/v1/query", query=query, time=self.end)


def filled(query, variables):
    query = query.replace("$__rate_interval", "1m")
    for name, value in variables.items():
        query = query.replace(f"${name}", value)
    return query


def number(value, unit, decimals=None):
    """A value as Grafana would write it in this unit, roughly."""
    if value is None or math.isnan(value):
        return "–"
    if unit == "percentunit":
        return f"{100 * value:.{decimals}f} %" if decimals is not None else f"{100 * value:.3g} %"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{1000 * value:.3g} ms"
    if unit == "bytes":
        for word in ("B", "KiB", "MiB", "GiB"):
            if value < 1024 or word == "GiB":
                return f"{value:.3g} {word}" if value < 1000 else f"{value:.0f} {word}"
            value /= 1024
    text = f"{value:.{decimals}f}" if decimals is not None else f"{value:.3g}"
    words = {"reqps": " req/s", "ops": " ops/s"}
    suffix = words.get(unit, unit.removeprefix("suffix:") if unit.startswith("suffix:") else "")
    return text + suffix


def legend(template, labels):
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)


def threshold(defaults, value):
    color = "green"
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    return NAMED.get(color, color)


def draw_stat(axes, panel, prometheus, variables):
    axes.set_axis_off()
    defaults = panel["fieldConfig"]["defaults"]
    found = []
    for target in panel["targets"]:
        for series in prometheus.over_time(filled(target["expr"], variables)):
            found.append((target["legendFormat"], [float(value) for _, value in series["values"]]))
    has_graph = panel["options"]["graphMode"] == "area"
    for place, (name, values) in enumerate(found):
        color = threshold(defaults, values[-1])
        x = (place + 0.5) / len(found)
        text = number(values[-1], defaults["unit"], defaults.get("decimals"))
        axes.text(x, 0.58, text, transform=axes.transAxes, ha="center", va="center", fontsize=15, color=color, weight="bold")
        if name:
            axes.text(x, 0.15, name, transform=axes.transAxes, ha="center", va="center", fontsize=8, color="#555")
        if has_graph:
            graph = axes.inset_axes([0, 0, 1, 0.3])
            graph.set_axis_off()
            graph.fill_between(range(len(values)), values, color=color, alpha=0.25, linewidth=0)


def draw_series(axes, panel, prometheus, variables):
    defaults = panel["fieldConfig"]["defaults"]
    found = []
    for target in panel["targets"]:
        for series in prometheus.over_time(filled(target["expr"], variables)):
            values = {float(at): float(value) for at, value in series["values"]}
            found.append((legend(target["legendFormat"], series["metric"]), values))
    fixed = {
        override["matcher"]["options"]: part["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
        for part in override["properties"]
        if part["id"] == "color"
    }
    times = sorted({at for _, values in found for at in values})
    dates = [datetime.datetime.fromtimestamp(at, datetime.timezone.utc) for at in times]
    stacked = "stacking" in defaults["custom"]
    below = [0.0] * len(times)
    for place, (name, values) in enumerate(found):
        color = next((NAMED[word] for pattern, word in fixed.items() if re.fullmatch(pattern, name)), None)
        color = color or SERIES[place % len(SERIES)]
        line = [values.get(at, math.nan) for at in times]
        if stacked:
            top = [low + (0 if math.isnan(value) else value) for low, value in zip(below, line)]
            axes.fill_between(dates, below, top, color=color, alpha=0.35, linewidth=0)
            axes.plot(dates, top, color=color, linewidth=1, label=name)
            below = top
        else:
            axes.plot(dates, line, color=color, linewidth=1.1, label=name, linestyle="--" if name == "limit" else "-")
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] <= 0.06 and all(value == 0 for _, values in found for value in values.values()):
        axes.set_ylim(top=1)
    dates_from = datetime.datetime.fromtimestamp(prometheus.start, datetime.timezone.utc)
    axes.set_xlim(dates_from, datetime.datetime.fromtimestamp(prometheus.end, datetime.timezone.utc))
    axes.xaxis.set_major_locator(matplotlib.dates.MinuteLocator(interval=max(1, round((prometheus.end - prometheus.start) / 300))))
    axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M"))
    axes.yaxis.set_major_locator(ticks(defaults, axes.get_ylim()[1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, defaults["unit"])))
    axes.grid(color="#e8e8e8", linewidth=0.6)
    axes.tick_params(labelsize=7, length=0, colors="#555")
    for side in axes.spines.values():
        side.set_visible(False)
    if found:
        columns = 4 if max(len(name) for name, _ in found) < 14 else 2
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.1), ncols=columns, fontsize=7, frameon=False,
                    handlelength=1, columnspacing=1, labelspacing=0.2, borderaxespad=0)


def ticks(defaults, top):
    if defaults["unit"] == "bytes":
        # Whole powers of two.
        return MultipleLocator(2 ** math.ceil(math.log2(max(top, 1) / 5)))
    return MaxNLocator(5, integer=defaults.get("decimals") == 0)


def table_rows(panel, prometheus, variables):
    """Columns by name, and rows, as the panel's transformations make them."""
    rows = {}
    for target in panel["targets"]:
        value_name = f"Value #{target['refId']}" if len(panel["targets"]) > 1 else "Value"
        for series in prometheus.now(filled(target["expr"], variables)):
            labels = series["metric"]
            row = rows.setdefault(tuple(sorted(labels.items())), dict(labels))
            row[value_name] = float(series["value"][1])
    organize = next(one["options"] for one in panel["transformations"] if one["id"] == "organize")
    order = sorted(organize["indexByName"], key=organize["indexByName"].get)
    names = [organize["renameByName"].get(name, name) for name in order]
    return names, [[row.get(name) for name in order] for _, row in sorted(rows.items())]


def draw_table(axes, panel, prometheus, variables):
    axes.set_axis_off()
    names, rows = table_rows(panel, prometheus, variables)
    properties = {
        override["matcher"]["options"]: {part["id"]: part["value"] for part in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
    }
    height = min(0.22, 0.95 / (len(rows) + 1)) if panel["gridPos"]["h"] < 6 else 0.13
    weights = [4.2 if name == "Digest" else 1.0 for name in names]
    lefts = [sum(weights[:place]) / sum(weights) for place in range(len(names))]
    for name, left in zip(names, lefts):
        axes.text(left + 0.005, 1, name, transform=axes.transAxes, va="top", fontsize=8, color="#1f60c4", weight="bold")
    for place, row in enumerate(rows):
        y = 1 - height * (place + 1)
        axes.plot([0, 1], [y + 0.25 * height] * 2, transform=axes.transAxes, color="#e8e8e8", linewidth=0.6)
        for name, left, value in zip(names, lefts, row):
            own = properties.get(name, {})
            color, weight = "#333", "normal"
            if isinstance(value, float):
                text = number(value, own.get("unit", "short"), own.get("decimals"))
                for mapping in own.get("mappings", []):
                    mapped = mapping["options"].get(f"{value:.0f}")
                    if mapped:
                        text, color, weight = mapped["text"], NAMED[mapped["color"]], "bold"
            else:
                text = value or ""
                text = text if len(text) <= 36 else text[:35] + "…"
            axes.text(left + 0.005, y, text, transform=axes.transAxes, va="top", fontsize=8, color=color, weight=weight)


DRAW = {"stat": draw_stat, "timeseries": draw_series, "table": draw_table}


def rows_of(dashboard):
    return max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])


def draw(figure, dashboard, subtitle, top, height, prometheus, variables):
    """Draws one dashboard from `top` rows downwards."""
    def box(x, y, w, h):
        return [x / 24, 1 - (y + h) / height, w / 24, h / height]

    figure.text(0.008, 1 - (top + TITLE / 2) / height, dashboard["title"], fontsize=14, weight="bold", va="center")
    figure.text(0.992, 1 - (top + TITLE / 2) / height, subtitle, fontsize=9, color="#555", va="center", ha="right")
    for panel in dashboard["panels"]:
        x, y, w, h = (panel["gridPos"][name] for name in "xywh")
        y += top + TITLE
        if panel["type"] == "row":
            figure.text(0.008, 1 - (y + 0.5) / height, f"▾ {panel['title']}", fontsize=10, va="center", color="#333")
            continue
        frame = figure.add_axes(box(x + 0.06, y + 0.08, w - 0.12, h - 0.16))
        frame.set_xticks([])
        frame.set_yticks([])
        frame.set_facecolor("white")
        for side in frame.spines.values():
            side.set_color("#dcdcdc")
        figure.text((x + 0.2) / 24, 1 - (y + 0.65) / height, panel["title"], fontsize=8.5, weight="bold", va="center")
        if panel["type"] == "timeseries":
            place = box(x + 1.05, y + 1.4, w - 1.35, h - 3.5)
        else:
            place = box(x + 0.2, y + 1.4, w - 0.4, h - 1.7)
        axes = figure.add_axes(place)
        DRAW[panel["type"]](axes, panel, prometheus, variables)


def main():
    url, deployment, minutes, output = sys.argv[1:]
    namespace, name = deployment.split("/")
    prometheus = Prometheus(url, float(minutes))
    read = lambda name: json.loads((DASHBOARDS / f"{name}.json").read_text())  # noqa: E731
    fleet, one = read("escadre-fleet"), read("escadre-deployment")
    height = rows_of(fleet) + rows_of(one) + 2 * TITLE + 0.5
    plt.rcParams["font.family"] = "DejaVu Sans"
    figure = plt.figure(figsize=(WIDTH, height * CELL), dpi=DPI, facecolor="#f4f4f4")
    draw(figure, fleet, "all namespaces, all deployments", 0, height, prometheus, {"namespace": ".*", "deployment": ".*"})
    variables = {"namespace": namespace, "deployment": name, "pod": ".*"}
    draw(figure, one, f"{namespace} / {name}, all pods", rows_of(fleet) + TITLE + 0.5, height, prometheus, variables)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    # A palette makes it small. Dithering would not.
    Image.open(output).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)
    print(f"{output}: {Path(output).stat().st_size} bytes")


main()
