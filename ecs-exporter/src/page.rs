//! The landing page.

use std::fmt::Write;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::reading::Reading;

const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<title>ecs-exporter</title>
<link rel=\"stylesheet\" href=\"/live/style.css\">
</head>
<body>
<main>
<h1>ecs-exporter</h1>
<p>Prometheus metrics of vmm-ecs: slice extensions, critical preemptions and fairness per VM.</p>
<ul>
<li><a href=\"/live\">Live</a>: VMs and host as they are now</li>
<li><a href=\"/metrics\">Metrics</a></li>
<li><a href=\"/-/healthy\">Healthy</a></li>
<li><a href=\"/-/ready\">Ready</a></li>
</ul>
";

/// The page, with the names of the VMs and the reasons why there may be more.
pub(crate) fn landing(reading: &Reading) -> String {
    let mut page = HEAD.to_owned();
    page.push_str("<h2>VMs</h2>\n");
    let vms = reading.vms();
    if vms.is_empty() && reading.is_useful() {
        page.push_str("<p>None yet.</p>\n");
    } else if !vms.is_empty() {
        page.push_str("<ul>\n");
        for vm in vms {
            let path = utf8_percent_encode(&vm.name, NON_ALPHANUMERIC);
            let text = html_escape::encode_safe(&vm.name);
            // Writing to a String cannot fail.
            let _ = writeln!(page, "<li><a href=\"/metrics/vm/{path}\">{text}</a></li>");
        }
        page.push_str("</ul>\n");
    }
    for (collector, problem) in reading.problems() {
        let text = html_escape::encode_safe(&problem);
        let _ = writeln!(page, "<p class=\"bad\">{collector}: {text}</p>");
    }
    let (version, revision) = (env!("CARGO_PKG_VERSION"), env!("ECS_BUILD_REVISION"));
    let _ = writeln!(
        page,
        "</main>\n<footer>Version {version}, revision {revision}</footer>\n</body>\n</html>"
    );
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use ecs_stats::{Snapshot, StatsError, VmStats};

    #[test]
    fn hostile_names_stay_text() {
        let vm = VmStats {
            name: "<b>\"&'/ü".into(),
            ..VmStats::default()
        };
        let page = landing(&Reading::of_stats(Ok(Snapshot {
            vms: vec![vm],
            ..Snapshot::default()
        })));
        assert!(
            page.contains("/metrics/vm/%3Cb%3E%22%26%27%2F%C3%BC\""),
            "{page}"
        );
        assert!(
            page.contains(">&lt;b&gt;&quot;&amp;&#x27;&#x2F;ü</a>"),
            "{page}"
        );
        assert!(!page.contains("<b>"));
    }

    #[test]
    fn the_reason_is_shown() {
        let page = landing(&Reading::of_stats(Err(StatsError::Absent {
            path: "/run/<x>".into(),
        })));
        assert!(
            page.contains("No stats socket at &#x2F;run&#x2F;&lt;x&gt;"),
            "{page}"
        );
    }
}
