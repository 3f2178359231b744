//! The files of the pages, part of the program: nothing is loaded from elsewhere.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

/// What a page may do: load from here, and nothing that is written into the page itself.
pub(crate) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; \
    style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

struct Asset {
    path: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
    tag: String,
}

/// A file by the path it is served at, below `/live/`.
macro_rules! assets {
    ($($path:literal: $content_type:literal, $file:literal;)*) => {
        static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
            vec![$({
                let bytes: &[u8] = include_bytes!(concat!("../web/", $file));
                Asset { path: $path, content_type: $content_type, bytes, tag: tag(bytes) }
            },)*]
        });
    };
}

assets! {
    "": "text/html; charset=utf-8", "live.html";
    "style.css": "text/css; charset=utf-8", "style.css";
    "main.js": "text/javascript; charset=utf-8", "main.js";
    "table.js": "text/javascript; charset=utf-8", "table.js";
    "charts.js": "text/javascript; charset=utf-8", "charts.js";
    "history.js": "text/javascript; charset=utf-8", "history.js";
    "format.js": "text/javascript; charset=utf-8", "format.js";
    "uplot.js": "text/javascript; charset=utf-8", "vendor/uplot/uPlot.iife.min.js";
    "uplot.css": "text/css; charset=utf-8", "vendor/uplot/uPlot.min.css";
}

/// Another program has other bytes, and another tag.
fn tag(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let digits: String = hash
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("\"{digits}\"")
}

/// The live page.
pub(crate) async fn page(headers: HeaderMap) -> Response {
    answer("", &headers)
}

/// One of its parts.
pub(crate) async fn part(Path(path): Path<String>, headers: HeaderMap) -> Response {
    answer(&path, &headers)
}

fn answer(path: &str, headers: &HeaderMap) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.path == path) else {
        return (StatusCode::NOT_FOUND, "Not found\n").into_response();
    };
    let known = headers.get(header::IF_NONE_MATCH);
    let common = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::ETAG, asset.tag.as_str()),
        (header::CONTENT_TYPE, asset.content_type),
    ];
    if known.is_some_and(|tag| tag.as_bytes() == asset.tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, asset.bytes).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn text(path: &str) -> &'static str {
        let asset = ASSETS.iter().find(|asset| asset.path == path).unwrap();
        std::str::from_utf8(asset.bytes).unwrap()
    }

    #[test]
    fn what_is_bundled_is_what_was_published() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/web/vendor/uplot");
        let note = std::fs::read_to_string(format!("{folder}/README.md")).unwrap();
        let sums = note.lines().filter_map(|line| line.split_once("  "));
        let mut checked = 0;
        for (sum, file) in sums {
            let bytes = std::fs::read(format!("{folder}/{file}")).unwrap();
            let hash = Sha256::digest(&bytes);
            let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, sum, "{file}");
            checked += 1;
        }
        assert_eq!(checked, 3);
        // The version in the note is that of the file.
        assert!(note.starts_with("uPlot 1.6.32,") && text("uplot.js").contains("(v1.6.32)"));
    }

    #[test]
    fn pages_keep_to_their_policy() {
        let page = text("");
        for forbidden in [
            "<style",
            " style=",
            " onclick=",
            "http://",
            "https://",
            "<script>",
        ] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert!(!CONTENT_SECURITY_POLICY.contains("unsafe"));
        // Whatever the page and its modules name is there.
        for asset in ASSETS
            .iter()
            .filter(|asset| !asset.path.starts_with("uplot"))
        {
            let source = std::str::from_utf8(asset.bytes).unwrap();
            for (_, rest) in source
                .match_indices("\"/live/")
                .map(|(at, found)| source.split_at(at + found.len()))
            {
                assert!(!text(rest.split('"').next().unwrap()).is_empty());
            }
            for (_, rest) in source
                .match_indices("from './")
                .map(|(at, found)| source.split_at(at + found.len()))
            {
                assert!(!text(rest.split('\'').next().unwrap()).is_empty());
            }
        }
    }
}
