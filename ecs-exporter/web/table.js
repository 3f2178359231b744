// The table of VMs: rows stay the same elements while a VM lives, so that focus and reading
// position do.

import { text } from './format.js';

const WORDS = { deviation: { 1: 'drifts', 2: 'starved' }, ready: { 1: 'waits', 2: 'waits long' }, cost: { 1: 'costly' } };

export class Table {
  #columns;
  #head;
  #body;
  #rows = new Map();
  #filter = '';
  sort = 'share';
  #turned = false;
  onsort = () => {};

  constructor(table, columns) {
    this.#columns = columns;
    this.#head = table.tHead.rows[0];
    this.#body = table.tBodies[0];
    this.#head.replaceChildren();
    this.#title('name', 'VM', 'Name of the VM.');
    for (const { id, name, help } of columns) this.#title(id, name, help);
    const state = document.createElement('th');
    state.scope = 'col';
    state.textContent = 'State';
    state.className = 'state';
    this.#head.append(state);
    this.#mark();
  }

  #title(id, name, help) {
    const cell = document.createElement('th');
    cell.scope = 'col';
    cell.dataset.id = id;
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = name;
    button.title = help;
    button.addEventListener('click', () => this.sortBy(id));
    cell.append(button);
    this.#head.append(cell);
  }

  sortBy(id) {
    this.#turned = this.sort === id && !this.#turned;
    this.sort = id;
    this.#mark();
    this.onsort();
  }

  // The same column, the other way round.
  turn() {
    this.sortBy(this.sort);
  }

  step(by) {
    const ids = ['name', ...this.#columns.map(({ id }) => id)];
    const place = (ids.indexOf(this.sort) + by + ids.length) % ids.length;
    this.#turned = false;
    this.sort = ids[place];
    this.#mark();
    this.onsort();
  }

  #ascending() {
    const column = this.#columns.find(({ id }) => id === this.sort);
    return (column?.ascending ?? true) !== this.#turned;
  }

  #mark() {
    for (const cell of this.#head.cells) {
      if (cell.dataset.id === this.sort) cell.setAttribute('aria-sort', this.#ascending() ? 'ascending' : 'descending');
      else cell.removeAttribute('aria-sort');
    }
  }

  set filter(value) {
    this.#filter = value.toLowerCase();
  }

  // Shows the VMs that pass the filter; returns how many do.
  show(vms) {
    const shown = vms.filter(({ name }) => name.toLowerCase().includes(this.#filter));
    const way = this.#ascending() ? 1 : -1;
    shown.sort((a, b) => {
      const [x, y] = [a[this.sort] ?? null, b[this.sort] ?? null];
      // What is not known comes last.
      if (x === null || y === null) return (x === null) - (y === null) || (a.name < b.name ? -1 : 1);
      return (x < y ? -way : x > y ? way : 0) || (a.name < b.name ? -1 : 1);
    });
    const most = Math.max(...vms.map((vm) => Math.max(vm.share ?? 0, vm.entitlement ?? 0)), 0.01);
    const names = new Set(shown.map(({ name }) => name));
    for (const [name, row] of this.#rows) {
      if (!names.has(name)) {
        row.remove();
        this.#rows.delete(name);
      }
    }
    const focused = document.activeElement;
    shown.forEach((vm, place) => {
      const row = this.#rows.get(vm.name) ?? this.#row(vm.name);
      this.#fill(row, vm, most);
      if (this.#body.rows[place] !== row) this.#body.insertBefore(row, this.#body.rows[place] ?? null);
    });
    // An element that is moved loses the focus.
    if (focused !== document.activeElement && this.#body.contains(focused)) focused.focus({ preventScroll: true });
    return shown.length;
  }

  #row(name) {
    const row = document.createElement('tr');
    const head = document.createElement('th');
    head.scope = 'row';
    const link = document.createElement('a');
    link.href = `#vm=${encodeURIComponent(name)}`;
    link.textContent = name || '(no name)';
    head.append(link);
    row.append(head);
    for (const { id } of this.#columns) {
      const cell = document.createElement('td');
      if (id === 'share') cell.append(bars('bullet', 'fill', 'tick'));
      if (id === 'deviation') cell.append(bars('diverge', 'fill'));
      const value = document.createElement('span');
      value.className = 'value';
      const word = document.createElement('span');
      word.className = 'hidden';
      cell.append(value, word);
      row.append(cell);
    }
    const state = document.createElement('td');
    state.className = 'state';
    row.append(state);
    this.#rows.set(name, row);
    return row;
  }

  #fill(row, vm, most) {
    this.#columns.forEach(({ id, unit }, i) => {
      const cell = row.cells[i + 1];
      const [value, word] = [cell.children[cell.children.length - 2], cell.lastElementChild];
      set(value, text(unit, vm[id]));
      const bad = vm.severity[id] ?? 0;
      if (cell.dataset.bad !== String(bad)) cell.dataset.bad = bad;
      set(word, bad ? ` ${WORDS[id]?.[bad] ?? ''}` : '');
      if (id === 'share') {
        const [fill, tick] = cell.firstElementChild.children;
        fill.style.width = `${((vm.share ?? 0) / most) * 100}%`;
        tick.hidden = vm.entitlement === null;
        tick.style.left = `calc(${((vm.entitlement ?? 0) / most) * 100}% - 3px)`;
      }
      if (id === 'deviation') {
        // The whole width is 30 % to either side.
        const part = Math.max(-1, Math.min(1, (vm.deviation ?? 0) / 0.3)) * 50;
        const fill = cell.firstElementChild.firstElementChild;
        fill.style.left = `${50 + Math.min(part, 0)}%`;
        fill.style.width = `${Math.abs(part)}%`;
      }
    });
    set(row.lastElementChild, vm.state);
  }

  // Moves the focus to the next name.
  move(by) {
    const links = [...this.#body.querySelectorAll('a')];
    const here = links.indexOf(document.activeElement);
    const there = here < 0 ? 0 : Math.max(0, Math.min(links.length - 1, here + by));
    links[there]?.focus();
  }
}

function set(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

function bars(...names) {
  const [box, ...parts] = names.map((name, i) => {
    const part = document.createElement(i ? 'i' : 'span');
    part.className = name;
    return part;
  });
  box.setAttribute('aria-hidden', 'true');
  box.append(...parts);
  return box;
}
