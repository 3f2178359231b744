// How values are written; the units are those of the exporter's table of columns.

export function text(unit, value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  switch (unit) {
    case 'percent': return (value * 100).toFixed(1);
    case 'signed_percent': {
      const tenths = Math.round(value * 1000) / 10 + 0;
      return (tenths < 0 ? '−' : '+') + Math.abs(tenths).toFixed(1);
    }
    case 'millis': return (value * 1000).toFixed(2);
    case 'rate': return value < 10 ? value.toFixed(1) : value.toFixed(0);
    case 'index': return value.toFixed(3);
    default: return value.toFixed(0);
  }
}

const ENDS = { percent: ' %', signed_percent: ' %', millis: ' ms', rate: '/s' };

// The value with its unit, for where no title says it.
export function full(unit, value) {
  const written = text(unit, value);
  return written === '–' ? written : written + (ENDS[unit] ?? '');
}

export const end = (unit) => (ENDS[unit] ?? '').trim();

// Time of day of a moment in seconds.
export const clock = (seconds) => (seconds === undefined ? '' : new Date(seconds * 1000).toLocaleTimeString('en-GB'));

// Factor from a value to what an axis shows.
export const scale = (unit) => (unit === 'percent' || unit === 'signed_percent' ? 100 : unit === 'millis' ? 1000 : 1);
