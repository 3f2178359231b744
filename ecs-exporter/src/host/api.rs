//! Asks VMMs over their HTTP API on a Unix socket: is it alive, and which UUID has its VM?

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::host::process::ProcessId;

/// VMMs asked at a time.
const AT_A_TIME: usize = 16;

/// Longest answer that is read, bytes: `vm.info` of a VM with many devices has some 100 kB.
const MAX_ANSWER: usize = 4 << 20;

/// What a VMM said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ApiFacts {
    /// It answered `vmm.ping`.
    pub(crate) up: bool,
    /// UUID of its VM.
    pub(crate) uuid: Option<String>,
}

/// What is read of `vm.info`.
#[derive(Debug, Deserialize)]
struct VmInfo {
    config: VmConfig,
}

#[derive(Debug, Deserialize)]
struct VmConfig {
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    uuid: Option<String>,
}

/// The last answers.
#[derive(Debug, Default)]
pub(crate) struct ApiCache(Mutex<HashMap<ProcessId, ApiFacts>>);

impl ApiCache {
    /// The last answer of a VMM, `None` before the first round.
    pub(crate) fn get(&self, id: ProcessId) -> Option<ApiFacts> {
        let facts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        facts.get(&id).cloned()
    }

    /// Asks every VMM once, each for at most `timeout`, and forgets the others.
    pub(crate) async fn refresh(&self, vmms: Vec<(ProcessId, PathBuf)>, timeout: Duration) {
        let slots = Arc::new(Semaphore::new(AT_A_TIME));
        let mut asking = JoinSet::new();
        for (id, socket) in vmms {
            let slots = Arc::clone(&slots);
            asking.spawn(async move {
                // The semaphore is never closed; without it there are just more at a time.
                let _slot = slots.acquire().await.ok();
                (id, ask(&socket, timeout).await)
            });
        }
        let answers = asking.join_all().await.into_iter().collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = answers;
    }
}

async fn ask(socket: &Path, timeout: Duration) -> ApiFacts {
    let get = |endpoint| async move {
        // Whatever goes wrong means that it is not up: the VMM's own log says more.
        let answer = tokio::time::timeout(timeout, get(socket, endpoint)).await;
        answer.ok()?.ok()
    };
    if get("vmm.ping").await.is_none() {
        return ApiFacts::default();
    }
    // A VMM without a VM refuses vm.info.
    let info = get("vm.info").await;
    let info = info.and_then(|body| serde_json::from_slice::<VmInfo>(&body).ok());
    ApiFacts {
        up: true,
        uuid: info.and_then(|info| info.config.platform?.uuid),
    }
}

/// Body of an answer with status 200.
async fn get(
    socket: &Path,
    endpoint: &str,
) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(format!("/api/v1/{endpoint}"))
        .header(header::HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(format!("status {}", response.status()).into());
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        Ok(body.collect().await?.to_bytes())
    };
    // The connection must be driven for the answer to come; when either ends, so does this.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => {
            ended?;
            answer.await
        }
    }
}
