//! Small builders for Grafana's dashboard JSON (schema 42, which Grafana 12 and newer write and
//! older ones read).
//!
//! In a query `@` stands for the dashboard's own label matchers: `up{@}`.
#![allow(
    clippy::indexing_slicing,
    reason = "assigning to a key of a JSON object inserts it"
)]

use serde_json::{Value, json};

const SCHEMA_VERSION: u32 = 42;
const GRID_WIDTH: u32 = 24;
/// Tag by which the dashboards link to each other.
const TAG: &str = "ecs";

fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

/// A dashboard whose panels flow from left to right.
pub(super) struct Dashboard {
    uid: &'static str,
    title: &'static str,
    description: &'static str,
    matchers: &'static str,
    variables: Vec<Value>,
    panels: Vec<Value>,
    x: u32,
    y: u32,
    line_height: u32,
}

impl Dashboard {
    /// `matchers` is what `@` stands for in its queries.
    pub(super) fn new(
        uid: &'static str,
        title: &'static str,
        description: &'static str,
        matchers: &'static str,
    ) -> Self {
        let source = json!({
            "name": "datasource", "label": "Data source", "type": "datasource",
            "query": "prometheus", "refresh": 1, "hide": 0,
        });
        Self {
            uid,
            title,
            description,
            matchers,
            variables: vec![source],
            panels: Vec::new(),
            x: 0,
            y: 0,
            line_height: 0,
        }
    }

    /// A variable with the values of label `name` of the series that `metric` selects.
    pub(super) fn variable(mut self, name: &str, label: &str, metric: &str, many: bool) -> Self {
        let query = format!("label_values({metric}, {name})");
        let mut variable = json!({
            "name": name, "label": label, "type": "query", "datasource": datasource(),
            "query": { "query": query, "refId": name },
            // With the time range: hosts and VMs come and go.
            "refresh": 2, "sort": 7, "hide": 0, "multi": many, "includeAll": many,
        });
        if many && let Some(variable) = variable.as_object_mut() {
            variable.insert("allValue".into(), ".*".into());
            variable.insert(
                "current".into(),
                json!({ "text": "All", "value": "$__all" }),
            );
        }
        self.variables.push(variable);
        self
    }

    /// Starts a row; the panels after it are below it.
    pub(super) fn row(mut self, title: &str) -> Self {
        self.break_line();
        let id = self.next_id();
        self.panels.push(json!({
            "type": "row", "id": id, "title": title, "collapsed": false, "panels": [],
            "gridPos": { "x": 0, "y": self.y, "w": GRID_WIDTH, "h": 1 },
        }));
        self.y += 1;
        self
    }

    /// Puts a panel right of the last one, or below it if there is no room.
    pub(super) fn panel(mut self, panel: Panel) -> Self {
        if self.x + panel.width > GRID_WIDTH {
            self.break_line();
        }
        let place = json!({ "x": self.x, "y": self.y, "w": panel.width, "h": panel.height });
        self.x += panel.width;
        self.line_height = self.line_height.max(panel.height);
        let id = self.next_id();
        self.panels.push(panel.json(id, place, self.matchers));
        self
    }

    fn break_line(&mut self) {
        self.x = 0;
        self.y += self.line_height;
        self.line_height = 0;
    }

    fn next_id(&self) -> usize {
        self.panels.len() + 1
    }

    /// The dashboard as Grafana imports it.
    pub(super) fn json(self) -> String {
        let firing = format!(
            "ALERTS{{alertname=~\"Ecs.+\", alertstate=\"firing\", {}}}",
            self.matchers
        );
        let dashboard = json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": { "from": "now-3h", "to": "now" },
            "timezone": "browser",
            "templating": { "list": self.variables },
            "annotations": { "list": [{
                "name": "Alerts", "enable": true, "iconColor": "red", "datasource": datasource(),
                "expr": firing, "titleFormat": "{{alertname}}",
                "textFormat": "{{instance}} {{vm}} {{severity}}", "step": "60s",
            }] },
            "links": [{
                "type": "dashboards", "title": "eCS", "tags": [TAG], "icon": "external link",
                "tooltip": "", "asDropdown": false, "targetBlank": false,
                "includeVars": true, "keepTime": true,
            }],
            "panels": self.panels,
        });
        format!("{dashboard:#}\n")
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Graph,
    Stat,
    Table,
    Heatmap,
}

/// Where a click leads.
#[derive(Clone, Copy)]
pub(super) enum Link {
    /// The host dashboard of the row's instance.
    Host,
    /// The VM dashboard of the row's VM.
    Vm,
}

impl Link {
    fn json(self) -> Value {
        let host = "${__data.fields.job:percentencode}\
                    &var-instance=${__data.fields.instance:percentencode}";
        let (title, url) = match self {
            Self::Host => ("Host", format!("/d/ecs-host?var-job={host}")),
            Self::Vm => (
                "VM",
                format!("/d/ecs-vm?var-job={host}&var-vm=${{__data.fields.vm:percentencode}}"),
            ),
        };
        let time = "${__url_time_range}&var-datasource=${datasource}";
        json!({ "title": title, "url": format!("{url}&{time}"), "targetBlank": false })
    }
}

/// A panel with its queries.
pub(super) struct Panel {
    kind: Kind,
    title: &'static str,
    description: String,
    width: u32,
    height: u32,
    queries: Vec<(String, String)>,
    defaults: Value,
    overrides: Vec<Value>,
    text: &'static str,
    link: Option<Link>,
}

impl Panel {
    fn new(
        kind: Kind,
        title: &'static str,
        description: &str,
        (width, height): (u32, u32),
    ) -> Self {
        Self {
            kind,
            title,
            description: description.to_owned(),
            width,
            height,
            queries: Vec::new(),
            defaults: json!({}),
            overrides: Vec::new(),
            text: "auto",
            link: None,
        }
        .limits(&[])
    }

    /// Lines over time, a third of the width.
    pub(super) fn graph(title: &'static str, description: &str) -> Self {
        let mut panel = Self::new(Kind::Graph, title, description, (8, 8));
        panel.defaults["color"] = json!({ "mode": "palette-classic" });
        panel.defaults["custom"] = json!({
            "drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never",
            "spanNulls": false, "thresholdsStyle": { "mode": "off" },
        });
        panel
    }

    /// The newest value, a sixth of the width.
    pub(super) fn stat(title: &'static str, description: &str) -> Self {
        let mut panel = Self::new(Kind::Stat, title, description, (4, 4));
        panel.defaults["color"] = json!({ "mode": "thresholds" });
        panel
    }

    /// Newest values, one row a subject, over the full width.
    pub(super) fn table(title: &'static str, description: &str) -> Self {
        let mut panel = Self::new(Kind::Table, title, description, (GRID_WIDTH, 8));
        panel.defaults["custom"] =
            json!({ "align": "auto", "cellOptions": { "type": "auto" }, "inspect": false });
        panel
    }

    /// Buckets of a histogram over time, half of the width.
    pub(super) fn heatmap(title: &'static str, description: &str) -> Self {
        Self::new(Kind::Heatmap, title, description, (12, 8))
    }

    /// Width in 24ths of the page.
    pub(super) fn width(mut self, width: u32) -> Self {
        self.width = width;
        self
    }

    /// A query and the name of its series; `{{label}}` is replaced.
    pub(super) fn query(mut self, expr: &str, legend: &str) -> Self {
        self.queries.push((expr.to_owned(), legend.to_owned()));
        self
    }

    /// A column of a table: a query, the unit and the limits of its values.
    pub(super) fn column(
        self,
        title: &str,
        expr: &str,
        unit: &str,
        limits: &[(&str, f64)],
    ) -> Self {
        self.column_with(title, expr, unit, &steps(limits))
    }

    /// A column of ratios that are red below `low` and yellow above `high`.
    pub(super) fn column_between(self, title: &str, expr: &str, low: f64, high: f64) -> Self {
        self.column_with(title, expr, "percentunit", &steps_between(low, high))
    }

    fn column_with(mut self, title: &str, expr: &str, unit: &str, steps: &Value) -> Self {
        self.overrides.push(json!({
            "matcher": { "id": "byName", "options": title },
            "properties": [
                { "id": "unit", "value": unit },
                { "id": "thresholds", "value": steps },
                { "id": "custom.cellOptions", "value": { "type": "color-text" } },
            ],
        }));
        self.query(expr, title)
    }

    /// Unit, by Grafana's name: `percentunit`, `s`, `ops`, `short`.
    pub(super) fn unit(mut self, unit: &str) -> Self {
        self.defaults["unit"] = unit.into();
        self
    }

    /// Colours from a value on upwards; green below them. Graphs show them as dashed lines.
    pub(super) fn limits(self, limits: &[(&str, f64)]) -> Self {
        self.steps(steps(limits), !limits.is_empty())
    }

    /// Red below `low`, yellow above `high`.
    pub(super) fn between(self, low: f64, high: f64) -> Self {
        self.steps(steps_between(low, high), true)
    }

    /// Red below `limit`.
    pub(super) fn at_least(self, limit: f64) -> Self {
        let steps = json!({ "mode": "absolute", "steps": [
            { "color": "red", "value": null },
            { "color": "green", "value": limit },
        ]});
        self.steps(steps, true)
    }

    fn steps(mut self, steps: Value, visible: bool) -> Self {
        self.defaults["thresholds"] = steps;
        if self.kind == Kind::Graph && visible {
            self.defaults["custom"]["thresholdsStyle"] = json!({ "mode": "dashed" });
        }
        self
    }

    /// Areas on top of each other.
    pub(super) fn stacked(mut self) -> Self {
        self.defaults["custom"]["stacking"] = json!({ "mode": "normal", "group": "A" });
        self
    }

    /// Says `text` for the value 0 or 1.
    pub(super) fn truth(mut self, no: &str, yes: &str) -> Self {
        self.defaults["mappings"] = json!([{ "type": "value", "options": {
            "0": { "text": no, "color": "red" }, "1": { "text": yes, "color": "green" },
        }}]);
        self
    }

    /// Shows the name of the series instead of its value.
    pub(super) fn names(mut self) -> Self {
        self.text = "name";
        self
    }

    /// A click on a value leads there.
    pub(super) fn link(mut self, link: Link) -> Self {
        self.link = Some(link);
        self
    }

    fn json(mut self, id: usize, place: Value, matchers: &str) -> Value {
        if let Some(link) = self.link {
            self.defaults["links"] = json!([link.json()]);
        }
        let table = self.kind == Kind::Table;
        let targets: Vec<Value> = self
            .queries
            .iter()
            .zip('A'..='Z')
            .map(|((expr, legend), id)| {
                let instant = table || self.kind == Kind::Stat;
                let format = match self.kind {
                    Kind::Table => "table",
                    Kind::Heatmap => "heatmap",
                    Kind::Graph | Kind::Stat => "time_series",
                };
                json!({
                    "refId": id.to_string(), "datasource": datasource(),
                    "expr": expr.replace('@', matchers), "legendFormat": legend,
                    "format": format, "instant": instant, "range": !instant,
                })
            })
            .collect();
        let mut panel = json!({
            "id": id,
            "type": self.type_name(),
            "title": self.title,
            "description": self.description,
            "gridPos": place,
            "datasource": datasource(),
            "targets": targets,
            "fieldConfig": { "defaults": self.defaults, "overrides": self.overrides },
            "options": self.options(),
        });
        if table {
            panel["transformations"] = self.one_row_a_subject();
        }
        panel
    }

    fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::Graph => "timeseries",
            Kind::Stat => "stat",
            Kind::Table => "table",
            Kind::Heatmap => "heatmap",
        }
    }

    fn options(&self) -> Value {
        match self.kind {
            Kind::Graph => json!({
                "legend": {
                    "displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": [],
                },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
            Kind::Stat => json!({
                "colorMode": "value", "graphMode": "none", "justifyMode": "auto",
                "orientation": "auto", "textMode": self.text, "wideLayout": true,
                "showPercentChange": false, "percentChangeColorMode": "standard",
                "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
            }),
            Kind::Table => json!({ "showHeader": true, "frameIndex": 0, "cellHeight": "sm" }),
            Kind::Heatmap => json!({
                "calculate": false,
                "color": {
                    "mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5,
                    "fill": "dark-orange", "reverse": false,
                },
                "exemplars": { "color": "rgba(255,0,255,0.7)" },
                "legend": { "show": true },
                "showValue": "never",
                "tooltip": { "mode": "single", "yHistogram": false, "showColorScale": false },
                "yAxis": { "axisPlacement": "left", "unit": "s" },
            }),
        }
    }

    /// Joins the queries' answers by their labels and names the columns.
    fn one_row_a_subject(&self) -> Value {
        let many = self.queries.len() > 1;
        let column = |id: char| {
            if many {
                format!("Value #{id}")
            } else {
                "Value".to_owned()
            }
        };
        let names: serde_json::Map<String, Value> = self
            .queries
            .iter()
            .zip('A'..='Z')
            .map(|((_, title), id)| (column(id), title.as_str().into()))
            .collect();
        // Rows are joined if all they share is the same: the names of the metrics are not.
        json!([
            { "id": "organize", "options": {
                "excludeByName": { "Time": true, "__name__": true },
                "renameByName": {}, "indexByName": {},
            }},
            { "id": "merge", "options": {} },
            { "id": "organize", "options": {
                "excludeByName": {}, "renameByName": names, "indexByName": {},
            }},
        ])
    }
}

fn steps_between(low: f64, high: f64) -> Value {
    json!({ "mode": "absolute", "steps": [
        { "color": "red", "value": null },
        { "color": "green", "value": low },
        { "color": "yellow", "value": high },
    ]})
}

fn steps(limits: &[(&str, f64)]) -> Value {
    let base = json!({ "color": "green", "value": null });
    let above = limits
        .iter()
        .map(|(color, value)| json!({ "color": color, "value": value }));
    json!({ "mode": "absolute", "steps": std::iter::once(base).chain(above).collect::<Vec<_>>() })
}
