//! `healthcheck`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A healthy exporter answers at once; a ready one has to look at its sources first.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest answer that is shown, bytes.
const MAX_ANSWER: usize = 64 << 10;

/// What the exporter says.
pub(super) fn check(address: SocketAddr, ready: bool) -> anyhow::Result<String> {
    let path = if ready { "/-/ready" } else { "/-/healthy" };
    let answer = ecs_exporter::runtime()?
        .block_on(async { tokio::time::timeout(TIMEOUT, get(address, path)).await });
    let (status, text) = answer
        .with_context(|| format!("No answer from {address} in {TIMEOUT:?}"))?
        .with_context(|| format!("Cannot ask {address}"))?;
    ensure!(status == 200, "{address} answers {status}: {}", text.trim());
    Ok(text)
}

async fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends when the sender is dropped, and what goes wrong comes out of the request.
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    let body = body
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!(error))?;
    Ok((
        status,
        String::from_utf8_lossy(&body.to_bytes()).into_owned(),
    ))
}
