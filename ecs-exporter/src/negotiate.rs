//! Which format and encoding a client asks for.

/// Exposition formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Exact `Content-Type`: Prometheus 3 refuses anything else.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The format an `Accept` header prefers; text unless OpenMetrics 1.0 has a higher weight.
    #[must_use]
    pub fn negotiate(accept: &str) -> Self {
        let mut open_metrics = 0.0f64;
        let mut text = 0.0f64;
        for (media, parameters, q) in elements(accept) {
            let version = parameters.iter().find(|(name, _)| name == "version");
            let version = version.map(|(_, value)| value.as_str());
            match (media.as_str(), version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => {
                    open_metrics = open_metrics.max(q);
                }
                ("text/plain", None | Some("0.0.4")) | ("*/*" | "text/*", _) => text = text.max(q),
                _ => {}
            }
        }
        if open_metrics > text {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }
}

/// Whether an `Accept-Encoding` header allows gzip.
#[must_use]
pub(crate) fn accepts_gzip(accept_encoding: &str) -> bool {
    let weight = |name: &str| {
        elements(accept_encoding)
            .find(|(coding, _, _)| coding == name)
            .map(|(_, _, q)| q)
    };
    weight("gzip")
        .or_else(|| weight("*"))
        .is_some_and(|q| q > 0.0)
}

/// Name, parameters and weight of one element of a header.
type Element = (String, Vec<(String, String)>, f64);

/// Elements of a header such as `a;version=1;q=0.5, b`, in lower case.
fn elements(header: &str) -> impl Iterator<Item = Element> {
    header.split(',').map(|element| {
        let mut parts = element.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters: Vec<(String, String)> = parts
            .filter_map(|part| part.split_once('='))
            .map(|(key, value)| {
                let value = value.trim().trim_matches('"');
                (key.trim().to_ascii_lowercase(), value.to_ascii_lowercase())
            })
            .collect();
        let q = parameters.iter().find(|(key, _)| key == "q");
        // A weight that cannot be read counts as none given.
        let q = q.and_then(|(_, value)| value.parse().ok()).unwrap_or(1.0);
        (name, parameters, q)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_gets_openmetrics_and_everybody_else_text() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,\
            application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,\
            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in [prometheus_2, prometheus_3, "application/openmetrics-text"] {
            assert_eq!(Format::negotiate(accept), Format::OpenMetrics, "{accept}");
        }
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for accept in [
            "",
            "*/*",
            browser,
            "text/plain",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0.2, text/plain;q=0.5",
            "application/openmetrics-text;version=1.0.0;q=0",
            ";;;=,=;q=x,,",
        ] {
            assert_eq!(Format::negotiate(accept), Format::Text, "{accept}");
        }
    }

    #[test]
    fn gzip_only_if_allowed() {
        for header in ["gzip", "deflate, GZIP;q=0.5", "*", "br;q=1, *;q=0.1"] {
            assert!(accepts_gzip(header), "{header}");
        }
        for header in [
            "",
            "identity",
            "gzip;q=0",
            "gzip;q=0.0, *",
            "x-gzip",
            "*;q=0",
        ] {
            assert!(!accepts_gzip(header), "{header}");
        }
    }
}
