//! Routes and handlers.

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tracing::error;

use crate::collector::Scope;
use crate::exporter::{Exporter, ScrapeError, chain, gzip};
use crate::negotiate::{Format, accepts_gzip};
use crate::page;

/// The routes of docs/metrics.md.
pub(crate) fn router(exporter: Arc<Exporter>) -> Router {
    Router::new()
        .route("/", get(landing))
        .route("/metrics", get(metrics))
        .route("/metrics/vm/{vm}", get(vm_metrics))
        .route("/-/healthy", get(|| async { "Healthy\n" }))
        .route("/-/ready", get(ready))
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "Not found; the page at / lists the links\n",
            )
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&exporter), count))
        .with_state(exporter)
}

async fn count(State(exporter): State<Arc<Exporter>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    // Paths that match no route share one series: their number is up to the client.
    let handler = route.as_ref().map_or("other", MatchedPath::as_str);
    exporter.count_request(handler, response.status().as_u16());
    response
}

async fn landing(State(exporter): State<Arc<Exporter>>) -> Response {
    blocking(move || {
        let result = exporter.read().result;
        let names = result.map(|snapshot| snapshot.vms.into_iter().map(|vm| vm.name).collect());
        Html(page::landing(names)).into_response()
    })
    .await
}

async fn metrics(State(exporter): State<Arc<Exporter>>, headers: HeaderMap) -> Response {
    let scope = exporter.host_scope();
    expose(exporter, scope, headers).await
}

async fn vm_metrics(
    State(exporter): State<Arc<Exporter>>,
    Path(vm): Path<String>,
    headers: HeaderMap,
) -> Response {
    expose(exporter, Scope::Vm(vm), headers).await
}

async fn ready(State(exporter): State<Arc<Exporter>>) -> Response {
    blocking(move || match exporter.check() {
        Ok(()) => "Ready\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, chain(&error) + "\n").into_response(),
    })
    .await
}

async fn expose(exporter: Arc<Exporter>, scope: Scope, headers: HeaderMap) -> Response {
    let format = Format::negotiate(&joined(&headers, header::ACCEPT));
    let compress = accepts_gzip(&joined(&headers, header::ACCEPT_ENCODING));
    blocking(move || {
        let text = match exporter.expose(exporter.read(), scope, format) {
            Ok(text) => text,
            Err(error @ ScrapeError::NoSuchVm(_)) => {
                return (StatusCode::NOT_FOUND, chain(&error) + "\n").into_response();
            }
            Err(error) => return internal(&error),
        };
        let common = [
            (header::CONTENT_TYPE, format.content_type()),
            (header::VARY, "Accept, Accept-Encoding"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        if !compress {
            return (common, text).into_response();
        }
        match gzip(&text) {
            Ok(bytes) => (common, [(header::CONTENT_ENCODING, "gzip")], bytes).into_response(),
            Err(error) => internal(&error),
        }
    })
    .await
}

/// All values of a header that may come in several lines.
fn joined(headers: &HeaderMap, name: HeaderName) -> String {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(",")
}

/// Runs what may block on a thread that may.
async fn blocking(work: impl FnOnce() -> Response + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(work).await {
        Ok(response) => response,
        Err(error) => internal(&error),
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Response {
    error!(error = chain(error), "A request failed");
    (StatusCode::INTERNAL_SERVER_ERROR, chain(error) + "\n").into_response()
}
