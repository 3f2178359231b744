//! exporter-toolkit's web configuration file: TLS, client certificates, users, headers.
//!
//! The file and the certificates it names are looked at again at most once a second, when a client
//! connects, and read when one has changed. One that has become bad is told in the log; the last
//! good one stays in force.

mod auth;
mod file;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::http::{HeaderName, HeaderValue};
use rustls::ServerConfig;
use tracing::{error, info};

pub use auth::hash_password;

use auth::Users;
use tls::AllowedSans;

/// Why a web configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// A file cannot be read.
    #[error("Cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is no web configuration.
    #[error("{path}: {problem}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        problem: String,
    },
    /// A certificate or key cannot be used.
    #[error("tls_server_config: {what}: {problem}")]
    Tls {
        /// Field or file.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// A user's hash is no bcrypt.
    #[error("basic_auth_users: {0:?} has no bcrypt hash; make one with ecs-exporter hash-password")]
    User(String),
    /// A header cannot be sent.
    #[error("http_server_config: headers: {0:?} is no header")]
    Header(String),
}

/// Reads a web configuration and everything it names, and says what is wrong with it.
///
/// # Errors
/// [`WebError`].
pub fn check_web_config(path: &Path) -> Result<(), WebError> {
    Web::read(path).map(drop)
}

/// What the file means.
#[derive(Debug, Clone, Default)]
pub(crate) struct Web {
    /// TLS, if it is to be used.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// Subject alternative names of which a client's certificate must have one; empty: any.
    pub(crate) sans: AllowedSans,
    /// Users; none: everybody may.
    pub(crate) users: Arc<Users>,
    /// Headers of every answer.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Web {
    /// Reads a file and what it names; paths in it are relative to its folder. Also returns every
    /// file that was read.
    ///
    /// # Errors
    /// [`WebError`].
    fn read(path: &Path) -> Result<(Self, Vec<PathBuf>), WebError> {
        let text = std::fs::read_to_string(path).map_err(|source| WebError::Read {
            path: path.to_owned(),
            source,
        })?;
        let file: file::WebFile =
            crate::file::parse_yaml(&text).map_err(|problem| WebError::Parse {
                path: path.to_owned(),
                problem,
            })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut files = vec![path.to_owned()];
        let (tls, sans) = match file.tls_server_config {
            Some(section) => {
                let (config, sans) = tls::server_config(section, folder, &mut files)?;
                (Some(Arc::new(config)), sans)
            }
            None => (None, AllowedSans::default()),
        };
        let header = |(name, value): (String, String)| {
            let parsed = (name.parse().ok(), value.parse().ok());
            match parsed {
                (Some(name), Some(value)) => Ok((name, value)),
                _ => Err(WebError::Header(name)),
            }
        };
        let web = Self {
            tls,
            sans,
            users: Arc::new(Users::new(file.basic_auth_users)?),
            headers: file
                .http_server_config
                .headers
                .into_iter()
                .map(header)
                .collect::<Result<_, _>>()?,
        };
        Ok((web, files))
    }
}

/// The web configuration in force, kept up to date with its files.
#[derive(Debug)]
pub(crate) struct WebSource {
    path: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    web: Web,
    /// The files and when each was changed.
    stamps: Vec<(PathBuf, Option<SystemTime>)>,
    looked: Instant,
}

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

impl WebSource {
    /// Reads `path`; without one there is neither TLS nor a user.
    ///
    /// # Errors
    /// [`WebError`].
    pub(crate) fn new(path: Option<PathBuf>) -> Result<Self, WebError> {
        let (web, files) = match &path {
            Some(path) => Web::read(path)?,
            None => Default::default(),
        };
        Ok(Self {
            path,
            state: Mutex::new(State {
                web,
                stamps: stamps(files),
                looked: Instant::now(),
            }),
        })
    }

    /// The configuration in force now. Reads small files if they have changed.
    pub(crate) fn get(&self) -> Web {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.path
            && state.looked.elapsed() >= LOOK
        {
            state.looked = Instant::now();
            let files = state.stamps.iter().map(|(file, _)| file.clone()).collect();
            let now = stamps(files);
            if now != state.stamps {
                match Web::read(path) {
                    Ok((web, files)) => {
                        info!(path = %path.display(), "Read the web configuration again");
                        state.web = web;
                        state.stamps = stamps(files);
                    }
                    Err(problem) => {
                        let problem = crate::chain(&problem);
                        error!(
                            problem,
                            "The web configuration is bad: the last good one stays"
                        );
                        // Told once, until a file changes again.
                        state.stamps = now;
                    }
                }
            }
        }
        state.web.clone()
    }
}

fn stamps(files: Vec<PathBuf>) -> Vec<(PathBuf, Option<SystemTime>)> {
    let stamp = |path: PathBuf| {
        let changed = std::fs::metadata(&path).and_then(|meta| meta.modified());
        (path, changed.ok())
    };
    files.into_iter().map(stamp).collect()
}
