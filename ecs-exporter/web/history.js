// The last values of every series, in rings of a fixed size: a page left open for a week holds no
// more than one of ten minutes.

export const LENGTH = 600;

const HOST = ['used', 'ready', 'grants', 'avoided', 'critical', 'debt_seconds', 'jain'];

export class History {
  #times = new Float64Array(LENGTH);
  #next = 0;
  #size = 0;
  #fields;
  #series = new Map();

  constructor(fields) {
    this.#fields = fields;
  }

  push(frame) {
    const at = this.#next;
    this.#times[at] = frame.time_ms / 1000;
    for (const rings of this.#series.values()) for (const ring of rings.values()) ring[at] = NaN;
    this.#write('host', HOST, frame.host, at);
    for (const vm of frame.vms) this.#write(`vm ${vm.name}`, this.#fields, vm, at);
    this.#next = (at + 1) % LENGTH;
    this.#size = Math.min(this.#size + 1, LENGTH);
    // Once a round, those that have had no value for a whole round go.
    if (this.#next === 0) this.#forget();
  }

  #write(name, fields, values, at) {
    let rings = this.#series.get(name);
    if (!rings) {
      rings = new Map(fields.map((field) => [field, new Float32Array(LENGTH).fill(NaN)]));
      this.#series.set(name, rings);
    }
    for (const field of fields) rings.get(field)[at] = values[field] ?? NaN;
  }

  #forget() {
    for (const [name, rings] of this.#series) {
      if ([...rings.values()].every((ring) => ring.every(Number.isNaN))) this.#series.delete(name);
    }
  }

  // In order of time.
  #unroll(ring) {
    const start = this.#size < LENGTH ? 0 : this.#next;
    return Array.from({ length: this.#size }, (_, i) => ring[(start + i) % LENGTH]);
  }

  times() {
    return this.#unroll(this.#times);
  }

  // null where there was no value.
  values(name, field, factor) {
    const ring = this.#series.get(name)?.get(field);
    if (!ring) return Array(this.#size).fill(null);
    return this.#unroll(ring).map((value) => (Number.isNaN(value) ? null : value * factor));
  }
}
