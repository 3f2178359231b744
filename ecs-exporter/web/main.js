// The live page: takes frames from the exporter and shows one of three views.

import { Charts } from './charts.js';
import { end, text } from './format.js';
import { History } from './history.js';
import { Table } from './table.js';

const $ = (id) => document.getElementById(id);
const RETRY_MS = 5000;
// How often a screen reader is told how things are, unless something turns bad.
const SAY_MS = 30000;

let table;
let history;
let frame;
let paused = false;
let charts = {};

// ---- views

function view() {
  const hash = location.hash.slice(1);
  if (hash.startsWith('vm=')) {
    try {
      return ['vm', decodeURIComponent(hash.slice(3))];
    } catch {
      return ['vms'];
    }
  }
  return [hash === 'host' ? 'host' : 'vms'];
}

function turnTo() {
  const [name, vm] = view();
  for (const id of ['vms', 'vm', 'host']) $(id).hidden = id !== name;
  for (const link of document.querySelectorAll('nav a')) {
    if (link.dataset.view === name || (name === 'vm' && link.dataset.view === 'vms')) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  if (name === 'vm') $('vm-title').textContent = vm || '(no name)';
  document.title = name === 'vm' ? `${vm} – eCS live` : name === 'host' ? 'Host – eCS live' : 'eCS live';
  if (name !== 'vms') $(`${name}-title`).focus({ preventScroll: true });
  show();
}

function show() {
  if (!frame) return;
  const [name, vm] = view();
  const { host, vms, problems } = frame;
  $('facts').textContent = [`${vms.length} VMs`, `${host.vcpus} vCPUs`, `${host.cpus} CPUs`, host.controller, host.kernel && `Linux ${host.kernel}`].filter(Boolean).join(' · ');
  tiles(host);
  $('problems').hidden = problems.length === 0;
  $('problems').replaceChildren(...problems.map(({ collector, text }) => Object.assign(document.createElement('li'), { textContent: `${collector}: ${text}` })));
  if (name === 'vms') {
    const shown = table.show(vms);
    $('count').textContent = shown === vms.length ? '' : `${shown} of ${vms.length}`;
    $('none').hidden = shown > 0;
    $('none').textContent = vms.length === 0 ? 'No VMs here yet.' : 'No VM passes the filter.';
  } else if (name === 'vm') {
    const found = vms.find((it) => it.name === vm);
    $('vm-facts').textContent = found ? [found.state, `${found.vcpus} vCPUs`, found.weight !== null && `weight ${found.weight}`, found.pid && `process ${found.pid}`].filter(Boolean).join(' · ') : 'not here now';
    charts.vm ??= new Charts($('vm').querySelector('.charts'), 'vm');
    charts.vm.show(history, `vm ${vm}`);
  } else {
    charts.host ??= new Charts($('host').querySelector('.charts'), 'host');
    charts.host.show(history, 'host');
  }
}

const TILES = [['used', 'CPU used', 'percent'], ['ready', 'Ready', 'percent'], ['grants', 'Grants', 'rate'], ['avoided', 'Avoided', 'percent'], ['critical', 'Critical', 'rate'], ['debt_seconds', 'Debt', 'millis'], ['jain', 'Jain’s index', 'index']];

function tiles(host) {
  const place = $('tiles');
  if (place.children.length === 0) {
    place.append(...TILES.map(([, title, unit]) => {
      const box = document.createElement('div');
      const [name, value, sign] = ['dt', 'dd', 'small'].map((tag) => document.createElement(tag));
      name.textContent = title;
      sign.textContent = end(unit);
      value.append(document.createElement('span'), sign);
      box.append(name, value);
      return box;
    }));
  }
  TILES.forEach(([field, , unit], i) => {
    const [value, sign] = place.children[i].lastElementChild.children;
    value.textContent = text(unit, host[field]);
    sign.hidden = host[field] === null;
  });
}

// ---- words for those who do not see it

let said = { bad: '', at: 0 };

function say() {
  const bad = frame.vms.filter((vm) => vm.severity.deviation === 2).map((vm) => `${vm.name} ${text('signed_percent', vm.deviation)} %`);
  const words = bad.length ? `${bad.length} starved: ${bad.slice(0, 5).join(', ')}` : 'no VM is starved';
  const names = frame.vms.filter((vm) => vm.severity.deviation === 2).map((vm) => vm.name).join();
  const now = performance.now();
  // When it changes, soon; otherwise seldom.
  if (names === said.bad && now - said.at < SAY_MS) return;
  if (names !== said.bad && now - said.at < 3000) return;
  said = { bad: names, at: now };
  $('say').textContent = `${frame.vms.length} VMs, ${words}`;
}

// ---- the exporter

function link(state, words) {
  if ($('link').dataset.state === state && $('link').textContent === words) return;
  $('link').dataset.state = state;
  $('link').textContent = words;
}

function connect() {
  const events = new EventSource('/live/events');
  events.addEventListener('columns', (event) => {
    if (table) return;
    const columns = JSON.parse(event.data);
    table = new Table($('table'), columns);
    table.onsort = show;
    table.filter = $('filter').value;
    history = new History(columns.map(({ id }) => id));
    $('columns-help').replaceChildren(...columns.flatMap(({ name, help }) => [Object.assign(document.createElement('dt'), { textContent: name }), Object.assign(document.createElement('dd'), { textContent: help })]));
  });
  events.addEventListener('frame', (event) => {
    const next = JSON.parse(event.data);
    link(paused ? 'wait' : 'live', paused ? 'paused' : 'live');
    history.push(next);
    if (paused) return;
    frame = next;
    show();
    say();
  });
  events.addEventListener('error', () => {
    link('lost', events.readyState === EventSource.CLOSED ? 'no place or no exporter; trying again' : 'connection lost; trying again');
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
  });
}

// ---- buttons and keys

function pause() {
  paused = !paused;
  $('pause').setAttribute('aria-pressed', paused);
  link(paused ? 'wait' : 'live', paused ? 'paused' : 'live');
}

const THEMES = ['', 'light', 'dark'];

function theme(next) {
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  $('theme').textContent = `Theme: ${next || 'system'}`;
  for (const chart of Object.values(charts)) chart.repaint();
}

function nextTheme() {
  const here = THEMES.indexOf(document.documentElement.dataset.theme ?? '');
  const next = THEMES[(here + 1) % THEMES.length];
  try {
    localStorage.setItem('theme', next);
  } catch {
    // Then it lasts as long as the page.
  }
  theme(next);
}

function stored() {
  try {
    return localStorage.getItem('theme') ?? '';
  } catch {
    return '';
  }
}

const KEYS = {
  '/': () => {
    if (view()[0] !== 'vms') location.hash = 'vms';
    $('filter').focus();
  },
  '?': () => $('help').showModal(),
  j: () => table?.move(1),
  k: () => table?.move(-1),
  s: () => table?.step(1),
  S: () => table?.step(-1),
  r: () => table?.turn(),
  v: () => (location.hash = 'vms'),
  o: () => (location.hash = 'host'),
  p: pause,
  t: nextTheme,
  Escape: () => (location.hash = 'vms'),
};

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $('help').open) return;
  if (event.target === $('filter')) {
    if (event.key === 'Escape') {
      $('filter').value = '';
      $('filter').dispatchEvent(new Event('input'));
    }
    if (event.key === 'Escape' || event.key === 'Enter') $('filter').blur();
    return;
  }
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

$('filter').addEventListener('input', () => {
  if (!table) return;
  table.filter = $('filter').value;
  show();
});
$('pause').addEventListener('click', pause);
$('theme').addEventListener('click', nextTheme);
$('keys').addEventListener('click', () => $('help').showModal());
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => theme(stored()));
addEventListener('hashchange', turnTo);
theme(stored());
turnTo();
connect();
