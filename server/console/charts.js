/**
 * Charts, each with its numbers as a table. Where uPlot is missing (fetch.py) the tables are all there is.
 *
 * Knows columns, labels and colours; nothing of what they mean. Colours come from style.css at every drawing, so that
 * both schemes hold.
 */

import { fillTable, make } from "./dom.js";
import * as format from "./format.js";
import { latest } from "./history.js";

/** @type {any} */
const uPlot = /** @type {any} */ (globalThis).uPlot;
const HEIGHT = 180;
const X_AXIS = 30;
/** Rows of a table over time: the last minute and a half. */
const MAX_ROWS = 45;

/** @param {string} name of a custom property in style.css */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/**
 * @typedef {object} Line
 * @property {string} label
 * @property {string} column
 * @property {boolean} [second] drawn in the second colour
 *
 * @typedef {import("./history.js").Column} Column
 */

/** A figure: headline, legend with numbers, canvas, table. */
class Figure {
  /** @param {HTMLElement} parent @param {string} title */
  constructor(parent, title) {
    this.title = title;
    this.legend = make("p", { class: "legend" });
    this.canvas = make("div", { role: "img" });
    this.table = make("table");
    const region = make("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": `${title}, table` }, this.table);
    this.details = make("details", { open: !uPlot }, make("summary", {}, "Numbers"), region);
    this.details.addEventListener("toggle", () => this.fill());
    const caption = make("figcaption", {}, make("h3", {}, title), this.legend);
    parent.append(make("figure", { class: "chart" }, caption, ...(uPlot ? [this.canvas] : []), this.details));
  }

  /** Brings the table up to date, if anybody looks at it. */
  fill() {}

  /**
   * @param {object} options of uPlot, but for its size and its axes' looks
   * @param {object[]} axes
   * @returns {any} the plot; it follows the figure's width and the colour scheme
   */
  plot(options, axes) {
    const looks = {
      stroke: () => colour("--muted"),
      font: `11px ${colour("--sans")}`,
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { show: false },
      gap: 6,
    };
    const plot = new uPlot(
      {
        width: Math.max(this.canvas.clientWidth, 1),
        height: HEIGHT,
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, points: { size: 6 } },
        axes: axes.map((axis) => ({ ...looks, ...axis })),
        ...options,
      },
      [[], []],
      this.canvas,
    );
    new ResizeObserver(([{ contentRect }]) => {
      if (contentRect.width) plot.setSize({ width: contentRect.width, height: HEIGHT });
    }).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw(false, true));
    return plot;
  }

  /** @param {{label: string, value: string, second?: boolean}[]} entries */
  tell(entries) {
    this.legend.replaceChildren(
      ...entries.map(({ label, value, second }) =>
        make("span", {}, make("i", { className: second ? "second" : "" }), `${label} ${value}`),
      ),
    );
    this.canvas.setAttribute("aria-label", `${this.title}: ${entries.map((e) => `${e.label} ${e.value}`).join(", ")}`);
  }
}

/** Columns over time. The legend says the numbers under the pointer, or else the last that are known. */
export class TimeChart extends Figure {
  /** @type {any} */
  #plot = null;
  /** @type {Record<string, Column>} */
  #series = { time: [] };
  /** @type {number | null} */
  #pointed = null;

  /**
   * @param {HTMLElement} parent
   * @param {string} title
   * @param {(value: number | null | undefined) => string} write a number with its unit
   * @param {Line[]} lines
   * @param {number[]} [steps] that may lie between two ticks; any round number where none are given
   */
  constructor(parent, title, write, lines, steps) {
    super(parent, title);
    this.steps = steps;
    this.lines = lines;
    this.write = write;
  }

  /** @param {Record<string, Column>} series `time` in seconds since the epoch, and the lines' columns */
  update(series) {
    this.#series = series;
    if (uPlot) {
      this.#plot ??= this.#begin();
      this.#plot.setData([series.time, ...this.lines.map(({ column }) => series[column] ?? [])]);
    }
    this.#tell();
    this.fill();
  }

  fill() {
    if (!this.details.open) return;
    const { time } = this.#series;
    const rows = time
      .map((at, i) => /** @type {[string, ...string[]]} */ ([
        format.time(at ?? 0),
        ...this.lines.map(({ column }) => this.write(this.#series[column]?.[i])),
      ]))
      .slice(-MAX_ROWS)
      .reverse();
    const columns = this.lines.map(({ label }) => /** @type {[string, "number"]} */ ([label, "number"]));
    fillTable(this.table, this.title, ["Time", ...columns], rows);
  }

  #tell() {
    const at = this.#pointed;
    const told = (/** @type {Column | undefined} */ column) => (at === null ? latest(column) : column?.[at]);
    this.tell(
      this.lines.map(({ label, column, second }) => ({ label, second, value: this.write(told(this.#series[column])) })),
    );
  }

  #begin() {
    const series = this.lines.map(({ label, second }) => {
      const stroke = () => colour(second ? "--accent-2" : "--accent");
      // No points but where there is no line either.
      const filter = (/** @type {any} */ plot, /** @type {number} */ i) => alone(plot.data[i]);
      return { label, stroke, width: 1.5, points: { show: false, filter, size: 4, fill: stroke } };
    });
    return this.plot(
      {
        scales: { y: { range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => [0, 1.1 * high || 1] } },
        series: [{}, ...series],
        hooks: {
          setCursor: [
            (/** @type {any} */ plot) => {
              this.#pointed = plot.cursor.idx ?? null;
              this.#tell();
            },
          ],
        },
      },
      [
        { space: 70, size: X_AXIS, values: clock },
        {
          size: 62,
          values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map((tick) => this.write(tick)),
          ...(this.steps ? { incrs: this.steps } : {}),
        },
      ],
    );
  }
}

/**
 * @typedef {object} Point
 * @property {string} label
 * @property {number} x
 * @property {number} y
 * @property {number} low
 * @property {number} high
 * @property {boolean} onCurve whether the line goes through it
 * @property {boolean} bad
 */

/** Points with intervals, both axes shares of 1, with a limit on each axis. */
export class IntervalChart extends Figure {
  /** @type {any} */
  #plot = null;
  /** @type {Point[]} */
  #points = [];
  /** @type {{x: number | null, y: number | null}} */
  #limits = { x: null, y: null };

  /**
   * @param {HTMLElement} parent
   * @param {string} title
   * @param {{x: string, y: string, limitX: string, limitY: string}} names
   */
  constructor(parent, title, names) {
    super(parent, title);
    this.names = names;
  }

  /** @param {Point[]} points by x @param {{x: number | null, y: number | null}} limits */
  update(points, limits) {
    this.#points = points;
    this.#limits = limits;
    if (uPlot) {
      this.#plot ??= this.#begin();
      this.#plot.setData([points.map(({ x }) => x), points.map(({ y, onCurve }) => (onCurve ? y : null))]);
    }
    this.tell([
      ...(limits.x === null ? [] : [{ label: this.names.limitX, value: format.share(limits.x) }]),
      ...(limits.y === null ? [] : [{ label: this.names.limitY, value: format.percent(limits.y), second: true }]),
    ]);
    this.fill();
  }

  fill() {
    if (!this.details.open) return;
    const rows = this.#points.map(({ label, x, y, low, high }) => /** @type {[string, ...string[]]} */ ([
      label,
      format.share(x),
      format.percent(y),
      `${(100 * low).toFixed(1)}–${format.percent(high)}`,
    ]));
    fillTable(this.table, this.title, ["Size", [this.names.x, "number"], [this.names.y, "number"], ["Interval", "number"]], rows);
  }

  #begin() {
    const shares = (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map((tick) => format.share(tick));
    return this.plot(
      {
        cursor: { show: false },
        scales: { x: { time: false, range: () => this.#rangeX() }, y: { range: () => this.#rangeY() } },
        series: [
          {},
          { stroke: () => colour("--accent"), width: 1.5, points: { show: false }, spanGaps: true },
        ],
        hooks: { draw: [(/** @type {any} */ plot) => this.#draw(plot)] },
      },
      [
        { space: 60, size: X_AXIS, values: shares },
        { size: 56, values: shares },
      ],
    );
  }

  #rangeX() {
    const most = Math.max(0.05, this.#limits.x ?? 0, ...this.#points.map(({ x }) => x));
    return [-0.04 * most, 1.06 * most];
  }

  /** Nothing at all is 0, but where all sizes are good the differences are what one wants to see. */
  #rangeY() {
    const least = Math.min(this.#limits.y ?? 1, ...this.#points.map(({ low }) => low));
    const floor = this.#points.length ? Math.max(0, least - 0.15 * (1 - least)) : 0;
    return [floor, 1];
  }

  /** Intervals, points and limits, in the canvas's own pixels. @param {any} plot */
  #draw(plot) {
    /** @type {CanvasRenderingContext2D} */
    const context = plot.ctx;
    const ratio = devicePixelRatio;
    const { left, top, width, height } = plot.bbox;
    const at = (/** @type {number} */ x, /** @type {number} */ y) => [plot.valToPos(x, "x", true), plot.valToPos(y, "y", true)];
    const line = (/** @type {number[]} */ [x0, y0], /** @type {number[]} */ [x1, y1]) => {
      context.beginPath();
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
      context.stroke();
    };
    context.save();
    context.lineWidth = 1.5 * ratio;
    context.setLineDash([4 * ratio, 4 * ratio]);
    if (this.#limits.x !== null) {
      const [x] = at(this.#limits.x, 0);
      context.strokeStyle = colour("--accent");
      line([x, top], [x, top + height]);
    }
    if (this.#limits.y !== null) {
      const [, y] = at(0, this.#limits.y);
      context.strokeStyle = colour("--accent-2");
      line([left, y], [left + width, y]);
    }
    context.setLineDash([]);
    for (const point of this.#points) {
      context.strokeStyle = context.fillStyle = colour(point.bad ? "--bad" : "--accent");
      line(at(point.x, point.low), at(point.x, point.high));
      const [x, y] = at(point.x, point.y);
      context.beginPath();
      context.arc(x, y, 4 * ratio, 0, 2 * Math.PI);
      context.fill();
    }
    context.restore();
  }
}

/** Where something is known, and nothing just before and after: no line goes through it. @param {Column} column */
function alone(column) {
  return column.flatMap((value, i) => (value != null && column[i - 1] == null && column[i + 1] == null ? [i] : []));
}

/** Ticks of a time axis, with seconds where they are that close. @param {any} _ @param {number[]} ticks */
function clock(_, ticks) {
  const isClose = ticks.length > 1 && ticks[1] - ticks[0] < 60;
  return ticks.map((at) => (isClose ? format.time(at) : format.time(at).slice(0, 5)));
}

/** A line in a table's cell, as high as it goes; nothing before two points are known. @param {Column} column */
export function sparkline(column) {
  const SVG = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "sparkline");
  svg.setAttribute("viewBox", "0 0 100 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const known = column.map((value, i) => /** @type {[number, number | null]} */ ([i, value])).filter(([, value]) => value !== null);
  if (known.length > 1) {
    const most = Math.max(...known.map(([, value]) => value ?? 0)) || 1;
    const places = known.map(([i, value]) => {
      const x = (100 * i) / (column.length - 1);
      return `${x.toFixed(1)},${(19 - (18 * (value ?? 0)) / most).toFixed(1)}`;
    });
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", `M${places.join("L")}`);
    svg.append(path);
  }
  return svg;
}
