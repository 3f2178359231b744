//! Routes and handlers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Router};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::error;

use crate::assets;
use crate::collector::Scope;
use crate::connections::Busy;
use crate::exporter::{Exporter, ScrapeError, chain, gzip};
use crate::live::hub::Hub;
use crate::negotiate::{Format, accepts_gzip};
use crate::page;
use crate::web::WebSource;

/// A request to read the configuration again; the sender gets what came of it.
#[derive(Debug)]
pub(crate) struct Reload(pub(crate) oneshot::Sender<Result<(), String>>);

/// Who may ask, and how many at a time.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    web: Arc<WebSource>,
    requests: Arc<Semaphore>,
    limit: usize,
}

impl Gate {
    pub(crate) fn new(web: Arc<WebSource>, limit: usize) -> Self {
        Self {
            web,
            requests: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }
}

/// The routes of docs/metrics.md; `/-/reload` if there is somebody to carry it out.
pub(crate) fn router(
    exporter: Arc<Exporter>,
    gate: Gate,
    hub: Arc<Hub>,
    reload: Option<mpsc::Sender<Reload>>,
) -> Router {
    // What looks at the sources; /-/healthy must answer while these are all taken.
    let limited = |route: MethodRouter<Arc<Exporter>>| {
        route.layer(middleware::from_fn_with_state(gate.clone(), limit))
    };
    let mut router = Router::new()
        .route("/", limited(get(landing)))
        .route("/metrics", limited(get(metrics)))
        .route("/metrics/vm/{vm}", limited(get(vm_metrics)))
        .route("/-/ready", limited(get(ready)))
        .route("/live", get(assets::page))
        .route("/live/{part}", get(assets::part))
        .route("/live/events", get(move || watch(Arc::clone(&hub))))
        .route("/-/healthy", get(|| async { "Healthy\n" }));
    if let Some(sender) = reload {
        let handler = move || reload_now(sender.clone());
        router = router.route("/-/reload", post(handler.clone()).put(handler));
    }
    router
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "Not found; the page at / lists the links\n",
            )
        })
        .layer(middleware::from_fn_with_state(gate, admit))
        .layer(middleware::from_fn_with_state(Arc::clone(&exporter), count))
        .layer(middleware::from_fn(mark))
        .with_state(exporter)
}

/// Marks the connection as busy until the last byte of the answer is on its way.
async fn mark(Extension(busy): Extension<Busy>, request: Request, next: Next) -> Response {
    busy.set(true);
    let guard = Idle(busy);
    next.run(request).await.map(|body| {
        Body::new(Marked {
            body,
            _guard: guard,
        })
    })
}

/// Marks the connection as idle when it is dropped.
struct Idle(Busy);

impl Drop for Idle {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// A body that keeps its connection busy.
struct Marked {
    body: Body,
    _guard: Idle,
}

impl HttpBody for Marked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn count(State(exporter): State<Arc<Exporter>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    // Paths that match no route share one series: their number is up to the client.
    let handler = route.as_ref().map_or("other", MatchedPath::as_str);
    exporter.count_request(handler, response.status().as_u16());
    response
}

/// Lets in who may ask, and adds the headers of the web configuration.
async fn admit(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let web = gate.web.get();
    let mut response = if web.users.is_empty() {
        next.run(request).await
    } else {
        let authorization = request.headers().get(header::AUTHORIZATION);
        let authorization = authorization.and_then(|value| value.to_str().ok().map(str::to_owned));
        let users = Arc::clone(&web.users);
        let check = move || users.admits(authorization.as_deref());
        // A task that dies admits nobody.
        if tokio::task::spawn_blocking(check).await.unwrap_or(false) {
            next.run(request).await
        } else {
            let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"ecs-exporter\"")];
            (StatusCode::UNAUTHORIZED, challenge, "Unauthorized\n").into_response()
        }
    };
    let headers = response.headers_mut();
    let fixed = [
        (
            header::CONTENT_SECURITY_POLICY,
            assets::CONTENT_SECURITY_POLICY,
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    headers.extend(fixed.map(|(name, value)| (name, HeaderValue::from_static(value))));
    // Last: what the operator sets replaces ours.
    headers.extend(web.headers);
    response
}

/// Server-sent events of the live page.
async fn watch(hub: Arc<Hub>) -> Response {
    let Some(events) = hub.watch() else {
        let wait = [(header::RETRY_AFTER, "5")];
        let text = "All places for live views are taken; try again later\n";
        return (StatusCode::SERVICE_UNAVAILABLE, wait, text).into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // Proxies that gather answers would gather for ever.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, events).into_response()
}

async fn limit(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let Ok(_permit) = gate.requests.try_acquire() else {
        let text = format!(
            "{} requests are being served; try again later\n",
            gate.limit
        );
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    next.run(request).await
}

async fn reload_now(reload: mpsc::Sender<Reload>) -> Response {
    let (answer, answered) = oneshot::channel();
    if reload.send(Reload(answer)).await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "Stopping\n").into_response();
    }
    match answered.await {
        Ok(Ok(())) => "Reloaded\n".into_response(),
        Ok(Err(problem)) => (StatusCode::INTERNAL_SERVER_ERROR, problem + "\n").into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "Stopping\n").into_response(),
    }
}

async fn landing(State(exporter): State<Arc<Exporter>>) -> Response {
    blocking(move || Html(page::landing(&exporter.read())).into_response()).await
}

async fn metrics(State(exporter): State<Arc<Exporter>>, headers: HeaderMap) -> Response {
    expose(exporter, Scope::Host, headers).await
}

async fn vm_metrics(
    State(exporter): State<Arc<Exporter>>,
    Path(vm): Path<String>,
    headers: HeaderMap,
) -> Response {
    expose(exporter, Scope::Vm(vm), headers).await
}

async fn ready(State(exporter): State<Arc<Exporter>>) -> Response {
    blocking(move || {
        let reading = exporter.read();
        if reading.is_useful() {
            return "Ready\n".into_response();
        }
        let text: String = reading
            .problems()
            .into_iter()
            .map(|(collector, problem)| format!("{collector}: {problem}\n"))
            .collect();
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
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
