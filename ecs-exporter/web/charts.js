// Figures over time: a canvas for eyes, and its sense in words for everybody else.
/* global uPlot */

import { clock, end, full, scale } from './format.js';

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const LINES = ['--accent', '--second'];

// A custom property that holds light-dark() is no colour for a canvas; a painted one is.
const probe = document.createElement('i');
probe.hidden = true;
function paint(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color || colour(name);
}

// One figure: { title, unit, series: [{ field, label }], zero }.
class Chart {
  #what;
  #plot;
  #words;
  #box;
  #data;
  // Place of the cursor, null where there is none.
  #at = null;

  constructor(what) {
    this.#what = what;
    this.element = document.createElement('figure');
    const caption = document.createElement('figcaption');
    caption.append(what.title);
    this.#words = what.series.map((_, i) => {
      const words = document.createElement('span');
      const line = document.createElement('i');
      line.className = i === 1 ? 'line second' : 'line';
      words.append(line, document.createElement('span'));
      caption.append(words);
      return words.lastElementChild;
    });
    this.#box = document.createElement('div');
    this.#box.className = 'plot';
    this.#box.setAttribute('aria-hidden', 'true');
    this.element.append(caption, this.#box);
  }

  #make() {
    const { unit, series, range } = this.#what;
    const axis = { stroke: () => paint('--muted'), grid: { stroke: () => paint('--line'), width: 1 }, ticks: { stroke: () => paint('--line'), width: 1 } };
    const sign = end(unit);
    this.#plot = new uPlot({
      ...this.#size(),
      cursor: { sync: { key: 'ecs' }, y: false },
      legend: { show: false },
      hooks: { setCursor: [(plot) => { this.#at = plot.cursor.idx ?? null; this.#tell(); }] },
      scales: { y: { range: range ?? ((_, low, high) => [Math.min(0, low ?? 0), Math.max(high ?? 0, 1) * 1.05]) } },
      axes: [{ ...axis, space: 90, size: 30, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => `${tick}${sign ? (sign === '/s' ? '' : ' ' + sign) : ''}`) }],
      series: [{}, ...series.map(({ label }, i) => ({ label, stroke: () => paint(LINES[i]), width: 1.75, dash: i === 1 ? [6, 4] : undefined, points: { show: false } }))],
    }, [[], ...series.map(() => [])], this.#box);
    new ResizeObserver(() => this.#plot.setSize(this.#size())).observe(this.#box);
  }

  #size() {
    return { width: Math.max(this.#box.clientWidth, 50), height: Math.max(this.#box.clientHeight, 50) };
  }

  show(history, name) {
    if (!this.#plot) this.#make();
    const { unit, series } = this.#what;
    this.#data = [history.times(), ...series.map(({ field }) => history.values(name, field, scale(unit)))];
    this.#plot.setData(this.#data);
    this.#tell();
  }

  // What the lines say: now, and between what; or at the cursor.
  #tell() {
    if (!this.#data) return;
    const { unit, series } = this.#what;
    const [times, ...lines] = this.#data;
    series.forEach(({ label }, i) => {
      const write = (value) => (value === null || value === undefined ? 'not known' : full(unit, value / scale(unit)));
      const head = series.length > 1 ? `${label} ` : '';
      const known = lines[i].filter((value) => value !== null);
      let words;
      if (this.#at !== null) words = `${write(lines[i][this.#at])} at ${clock(times[this.#at])}`;
      else if (known.length === 0) words = 'not known';
      else words = `${write(lines[i].at(-1))} (${write(known.reduce((a, b) => Math.min(a, b)))} to ${write(known.reduce((a, b) => Math.max(a, b)))})`;
      if (this.#words[i].textContent !== head + words) this.#words[i].textContent = head + words;
    });
  }

  repaint() {
    this.#plot?.redraw(false, true);
  }
}

const BY_VM = [
  { title: 'Share', unit: 'percent', series: [{ field: 'share', label: 'received' }, { field: 'entitlement', label: 'entitled' }] },
  { title: 'Deviation', unit: 'signed_percent', series: [{ field: 'deviation', label: 'deviation' }], range: (_, low, high) => [Math.min(-10, low ?? 0) * 1.1, Math.max(10, high ?? 0) * 1.1] },
  { title: 'Ready', unit: 'percent', series: [{ field: 'ready', label: 'ready' }] },
  { title: 'Extensions', unit: 'rate', series: [{ field: 'grants', label: 'granted' }, { field: 'critical', label: 'critical preemptions' }] },
  { title: 'Avoided', unit: 'percent', series: [{ field: 'avoided', label: 'avoided' }], range: () => [0, 105] },
  { title: 'Debt', unit: 'millis', series: [{ field: 'debt_seconds', label: 'debt' }] },
];

const BY_HOST = [
  { title: 'CPUs', unit: 'percent', series: [{ field: 'used', label: 'used' }, { field: 'ready', label: 'ready' }] },
  { title: 'Extensions', unit: 'rate', series: [{ field: 'grants', label: 'granted' }, { field: 'critical', label: 'critical preemptions' }] },
  { title: 'Avoided', unit: 'percent', series: [{ field: 'avoided', label: 'avoided' }], range: () => [0, 105] },
  { title: 'Debt', unit: 'millis', series: [{ field: 'debt_seconds', label: 'debt' }] },
  { title: 'Jain’s index', unit: 'index', series: [{ field: 'jain', label: 'index' }], range: (_, low) => [Math.min(0.9, low ?? 1), 1.005] },
];

export class Charts {
  #charts;

  constructor(place, kind) {
    this.#charts = (kind === 'vm' ? BY_VM : BY_HOST).map((what) => new Chart(what));
    place.append(...this.#charts.map((chart) => chart.element));
  }

  show(history, name) {
    for (const chart of this.#charts) chart.show(history, name);
  }

  repaint() {
    for (const chart of this.#charts) chart.repaint();
  }
}
