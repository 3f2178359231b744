// Types that a dashboard's JSON must fit. The test appends the dashboards as constants.
import type { AnnotationQuery, Dashboard, GraphFieldConfig, Panel, RowPanel, TableFieldOptions, VariableModel } from '@grafana/schema';
import type { Options as Heatmap } from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type { Options as Stat } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type { Options as Table } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type { Options as Graph } from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// As JSON has it: an enumeration is the text or number of one of its members.
type Json<T> =
  T extends string ? `${T}` :
  T extends number ? (`${T}` extends `${infer N extends number}` ? N : T) :
  T extends (infer E)[] ? Json<E>[] :
  T extends object ? { [K in keyof T]: Json<T[K]> } :
  T;

type Fields<Custom> = { defaults: Omit<Json<NonNullable<Panel['fieldConfig']>['defaults']>, 'custom'> & { custom?: Json<Custom> }; overrides: Json<NonNullable<Panel['fieldConfig']>['overrides']> };
type Of<Type extends string, Options, Custom = {}> =
  Omit<Json<Panel>, 'type' | 'options' | 'fieldConfig' | 'targets'> & { type: Type; options: Json<Options>; fieldConfig: Fields<Custom>; targets: Query[] };

// Grafana's Prometheus data source has no published type.
interface Query { refId: string; datasource: { type: 'prometheus'; uid: string }; expr: string; legendFormat: string; format: 'time_series' | 'table' | 'heatmap'; instant: boolean; range: boolean }

type AnyPanel = Of<'timeseries', Graph, GraphFieldConfig> | Of<'stat', Stat> | Of<'table', Table, TableFieldOptions> | Of<'heatmap', Heatmap> | Json<RowPanel>;

// What the annotations of a Prometheus data source have beside what all have.
type Annotation = Json<AnnotationQuery> & { expr: string; titleFormat: string; textFormat: string; step: string };

export type Checked = Omit<Json<Dashboard>, 'panels' | 'annotations' | 'templating'> & {
  panels: AnyPanel[]; annotations: { list: Annotation[] }; templating: { list: Json<VariableModel>[] };
};
