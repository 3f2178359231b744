// Panels of our dashboards as Grafana's own components draw them, from answers of a real Prometheus.
import { createElement as h } from 'react';
import { createRoot } from 'react-dom/client';
import {
  FieldConfigOptionsRegistry, FieldType, applyFieldOverrides, cacheFieldDisplayNames, createDataFrame, createTheme,
  dateTime, displayNameOverrideProcessor, getFieldDisplayValues, identityOverrideProcessor, standardTransformers,
  standardTransformersRegistry, transformDataFrame,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, ThemeContext, TimeSeries } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';

const ROW = 38;
const COLUMN = 60;
const theme = createTheme({ colors: { mode: 'dark' } });
const time = (seconds) => seconds * 1000;

standardTransformersRegistry.setInit(() =>
  ['merge', 'organize'].map((id) => {
    const transformer = Object.values(standardTransformers).find((it) => it.id === id);
    return { id, name: id, transformation: () => transformer, editor: () => null };
  })
);

/** `{{label}}` of a legend. */
const named = (legend, labels) => legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');

/** Frames of one query's answer, as Grafana's data source makes them. */
function frames(target, result) {
  const value = (text) => (text === 'NaN' ? NaN : Number(text));
  if (target.format === 'table') {
    const labels = [...new Set(result.flatMap((series) => Object.keys(series.metric)))];
    const fields = [
      { name: 'Time', type: FieldType.time, values: result.map((series) => time(series.value[0])) },
      ...labels.map((name) => ({
        name, type: FieldType.string, values: result.map((series) => series.metric[name] ?? ''),
      })),
      { name: `Value #${target.refId}`, type: FieldType.number, values: result.map((series) => value(series.value[1])) },
    ];
    return [createDataFrame({ refId: target.refId, fields })];
  }
  return result.map((series) => {
    const points = series.values ?? [series.value];
    const name = named(target.legendFormat, series.metric);
    return createDataFrame({
      refId: target.refId,
      name,
      fields: [
        { name: 'Time', type: FieldType.time, values: points.map(([at]) => time(at)), config: {} },
        {
          name: 'Value', type: FieldType.number, values: points.map(([, text]) => value(text)),
          labels: series.metric, config: { displayNameFromDS: name },
        },
      ],
    });
  });
}

/** The settings that a panel's configuration of fields makes use of. */
function registry(panel) {
  const standard = ['unit', 'thresholds', 'mappings', 'color', 'links', 'displayName', 'decimals', 'min', 'max'];
  const { defaults, overrides } = panel.fieldConfig;
  const custom = new Set(Object.keys(defaults.custom ?? {}));
  for (const { id } of overrides.flatMap((it) => it.properties)) {
    if (id.startsWith('custom.')) {
      custom.add(id.slice('custom.'.length));
    } else if (!standard.includes(id)) {
      throw new Error(`${panel.title}: ${id} is no setting of a field`);
    }
  }
  const item = (path, isCustom) => ({
    id: isCustom ? `custom.${path}` : path, path, isCustom, name: path, editor: () => null, override: () => null,
    process: path === 'displayName' ? displayNameOverrideProcessor : identityOverrideProcessor, shouldApply: () => true,
  });
  const all = [...standard.map((path) => item(path, false)), ...[...custom].map((path) => item(path, true))];
  return new FieldConfigOptionsRegistry(() => all);
}

const interpolate = (text) => text;

async function data(panel, answers) {
  let found = panel.targets.flatMap((target) => frames(target, answers[target.refId]));
  if (panel.transformations) {
    // Grafana numbers the values only where there are several queries.
    if (panel.targets.length === 1) {
      found.forEach((frame) => frame.fields.forEach((field) => { field.name = field.name.replace(/^Value #A$/, 'Value'); }));
    }
    found = await new Promise((done, failed) =>
      transformDataFrame(panel.transformations, found).subscribe({ next: done, error: failed })
    );
  }
  const series = applyFieldOverrides({
    data: found, fieldConfig: panel.fieldConfig, fieldConfigRegistry: registry(panel), theme,
    replaceVariables: interpolate, timeZone: 'utc',
  });
  cacheFieldDisplayNames(series);
  return series;
}

function Stat({ panel, series, width, height }) {
  const values = getFieldDisplayValues({
    fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions, replaceVariables: interpolate,
    theme, data: series, timeZone: 'utc',
  });
  const each = Math.floor(width / Math.max(values.length, 1));
  return h('div', { style: { display: 'flex' } }, values.map((value, index) =>
    h(BigValue, {
      key: index, value: value.display, width: each, height, theme, colorMode: panel.options.colorMode,
      graphMode: panel.options.graphMode, justifyMode: panel.options.justifyMode, textMode: panel.options.textMode,
      wideLayout: panel.options.wideLayout, count: values.length,
    })
  ));
}

function Inside({ panel, series, width, height, range }) {
  switch (panel.type) {
    case 'stat':
      return h(Stat, { panel, series, width, height });
    case 'table':
      return h(TableNG, { data: series[0], width, height, fieldConfig: panel.fieldConfig, enableVirtualization: false });
    case 'timeseries':
      return h(TimeSeries, { frames: series, width, height, timeRange: range, timeZone: 'utc', legend: panel.options.legend });
    default:
      throw new Error(`${panel.title}: nothing draws a panel of type ${panel.type}`);
  }
}

function Place({ panel, series, range }) {
  const { x, y, w, h: rows } = panel.gridPos;
  const [width, height] = [w * COLUMN - 8, rows * ROW - 8];
  const style = { position: 'absolute', left: x * COLUMN, top: y * ROW, width, height };
  return h('div', { style, 'data-panel': panel.id },
    h(PanelChrome, { title: panel.title, description: panel.description, width, height }, (width, height) =>
      h(Inside, { panel, series, width, height, range })
    )
  );
}

/** Draws all panels; `answers[id][refId]` is what Prometheus answered. */
window.draw = async (panels, answers, from, to) => {
  const range = { from: dateTime(time(from)), to: dateTime(time(to)), raw: { from: 'now-1h', to: 'now' } };
  const drawn = await Promise.all(panels.map(async (panel) =>
    h(Place, { key: panel.id, panel, series: await data(panel, answers[panel.id]), range })
  ));
  const rows = Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  createRoot(document.getElementById('root')).render(
    h(ThemeContext.Provider, { value: theme }, h(GlobalStyles, {}), drawn)
  );
  return [24 * COLUMN, rows * ROW];
};
