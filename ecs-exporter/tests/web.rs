//! exporter-toolkit's web configuration: TLS, client certificates, users, and changes of the files.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use common::*;
use ecs_exporter::{Config, Limits, ServeError, check_web_config, spawn_in_thread};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A certificate authority and what it signed, as PEM.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key for one name.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

/// A folder with a server's certificate, and a web configuration that can be changed.
struct Site {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            dir: tempfile::tempdir().unwrap(),
            authority: Authority::new(),
        };
        let (certificate, key) = site.authority.sign("localhost");
        site.write("cert.pem", &certificate);
        site.write("key.pem", &key);
        site.write("ca.pem", &site.authority.pem());
        site
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn config(&self, text: &str) -> PathBuf {
        self.write("web.yml", text);
        self.dir.path().join("web.yml")
    }

    fn serve(&self, text: &str) -> Stack {
        Stack::with_config(Config {
            web_config: Some(self.config(text)),
            ..Config::default()
        })
    }

    fn client(&self, identity: Option<(String, String)>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let pem = self.authority.pem();
        roots
            .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        Arc::new(config)
    }
}

const TLS: &str = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n";

/// First line of the answer over TLS, or why there is none.
fn https(addr: SocketAddr, client: &Arc<ClientConfig>) -> Result<String, String> {
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::clone(client), name).unwrap();
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut tls = StreamOwned::new(session, stream);
    let mut answer = String::new();
    tls.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .and_then(|()| tls.read_to_string(&mut answer))
        .map_err(|error| error.to_string())?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

const OK: &str = "HTTP/1.1 200 OK";

#[test]
fn metrics_come_over_tls_and_not_in_plain() {
    let site = Site::new();
    let stack = site.serve(TLS);
    assert_eq!(https(stack.addr(), &site.client(None)).unwrap(), OK);
    let mut plain = TcpStream::connect(stack.addr()).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    // Closed with an alert, or reset.
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"));
}

#[test]
fn only_certificates_of_the_client_ca_with_an_allowed_name_come_in() {
    let site = Site::new();
    let stack = site.serve(&format!(
        "{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n  \
         client_allowed_sans: [prometheus]\n"
    ));
    let get = |identity| https(stack.addr(), &site.client(identity));
    let ours = site.authority.sign("prometheus");
    assert_eq!(get(Some(ours)).unwrap(), OK);
    assert_ne!(get(None).unwrap_or_default(), OK);
    let other_name = site.authority.sign("somebody");
    assert_ne!(get(Some(other_name)).unwrap_or_default(), OK);
    let other_ca = Authority::new().sign("prometheus");
    assert_ne!(get(Some(other_ca)).unwrap_or_default(), OK);
}

#[test]
fn a_new_certificate_is_used_and_a_bad_one_is_not() {
    let site = Site::new();
    let stack = site.serve(TLS);
    let client = site.client(None);
    assert_eq!(https(stack.addr(), &client).unwrap(), OK);
    // Half a rotation: key and certificate do not belong together.
    let other = Authority::new();
    let (certificate, key) = other.sign("localhost");
    site.write("cert.pem", &certificate);
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(https(stack.addr(), &client).unwrap(), OK, "the old one");
    site.write("key.pem", &key);
    wait_for("the new certificate is used", PATIENCE, || {
        https(stack.addr(), &client).is_err()
    });
    let other_site = Site {
        dir: tempfile::tempdir().unwrap(),
        authority: other,
    };
    let client = other_site.client(None);
    assert_eq!(https(stack.addr(), &client).unwrap(), OK);
}

fn basic(text: &str) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(text);
    format!("Authorization: Basic {encoded}\r\n")
}

#[test]
fn users_of_the_file_come_in_and_headers_are_added() {
    let output = Command::new("sh")
        .args(["-c", "printf 'secret\\n' | \"$0\" hash-password"])
        .arg(env!("CARGO_BIN_EXE_ecs-exporter"))
        .output()
        .unwrap();
    let hash = String::from_utf8(output.stdout).unwrap();
    let site = Site::new();
    let stack = site.serve(&format!(
        "basic_auth_users:\n  ann: {}\nhttp_server_config:\n  http2: false\n  headers:\n    \
         X-Frame-Options: deny\n",
        hash.trim()
    ));
    for path in ["/", "/metrics", "/-/healthy", "/nope"] {
        let refused = stack.get(path);
        assert_eq!(refused.status, 401, "{path}");
        assert!(refused.header("www-authenticate").is_some());
        assert_eq!(refused.header("x-frame-options"), Some("deny"));
        assert!(!refused.text().contains("ecs_"));
    }
    let with = |text: &str| get(stack.addr(), "/metrics", &basic(text)).status;
    assert_eq!((with("ann:secret"), with("ann:secret")), (200, 200));
    assert_eq!((with("ann:wrong"), with("bob:secret")), (401, 401));
    let text = get(stack.addr(), "/metrics", &basic("ann:secret")).text();
    let refused = "ecs_exporter_http_requests_total{code=\"401\",handler=\"/metrics\"}";
    assert_eq!(value(&text, refused), Some(3.0), "{text}");
}

#[test]
fn bad_files_are_refused_with_a_reason() {
    let site = Site::new();
    site.write("empty.pem", "");
    let (_, other_key) = Authority::new().sign("localhost");
    site.write("other.pem", &other_key);
    let tls = |rest: &str| format!("{TLS}{rest}");
    for (text, reason) in [
        ("tls_config: {}\n".to_owned(), "line 1"),
        (tls("  client_auth: x\n"), "client_auth"),
        (
            tls("  client_auth_type: RequestClientCert\n"),
            "RequestClientCert",
        ),
        (
            tls("  client_auth_type: RequireAndVerifyClientCert\n"),
            "client_ca",
        ),
        (tls("  client_ca_file: ca.pem\n"), "client_auth_type"),
        (tls("  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n"), "RC4"),
        (tls("  min_version: TLS10\n"), "TLS10"),
        (
            tls("  min_version: TLS13\n  max_version: TLS12\n"),
            "version",
        ),
        (
            "tls_server_config: {cert_file: cert.pem}\n".to_owned(),
            "key_file",
        ),
        (
            "tls_server_config: {cert_file: empty.pem, key_file: key.pem}\n".to_owned(),
            "no certificate",
        ),
        (
            "tls_server_config: {cert_file: cert.pem, key_file: other.pem}\n".to_owned(),
            "key_file",
        ),
        (
            "tls_server_config: {cert_file: none.pem, key_file: key.pem}\n".to_owned(),
            "none.pem",
        ),
        ("basic_auth_users: {ann: plain}\n".to_owned(), "\"ann\""),
        (
            "http_server_config: {headers: {'a b': c}}\n".to_owned(),
            "\"a b\"",
        ),
    ] {
        let path = site.config(&text);
        let error = ecs_exporter::chain(&check_web_config(&path).unwrap_err());
        assert!(error.contains(reason), "{text}: {error}");
        let refused = spawn_in_thread(Config {
            listen: vec![loopback()],
            web_config: Some(path),
            ..Config::default()
        });
        assert!(matches!(refused.unwrap_err(), ServeError::Web(_)));
    }
    let missing = check_web_config(Path::new("/nowhere/web.yml")).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/web.yml"));
    for good in [
        "".to_owned(),
        tls("  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n"),
        tls("  min_version: TLS13\n  prefer_server_cipher_suites: true\n"),
    ] {
        check_web_config(&site.config(&good)).unwrap();
    }
}

#[test]
fn who_starts_no_handshake_is_cut_off() {
    let site = Site::new();
    let stack = Stack::with_config(Config {
        web_config: Some(site.config(TLS)),
        limits: Limits {
            write_timeout: Duration::from_millis(300),
            ..Limits::default()
        },
        ..Config::default()
    });
    let mut silent = TcpStream::connect(stack.addr()).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    assert_eq!(silent.read_to_end(&mut rest).unwrap(), 0);
}
