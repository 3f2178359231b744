//! TLS out of the web configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, version};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::WebError;
use super::file::{ClientAuth, TlsSection, Version};

/// Names of which a client's certificate must have one.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllowedSans(Vec<String>);

impl AllowedSans {
    /// Whether this certificate (DER) may come in.
    pub(crate) fn admit(&self, certificate: Option<&[u8]>) -> bool {
        self.0.is_empty()
            || certificate
                .map(certificate_names)
                .is_some_and(|names| names.iter().any(|name| self.0.contains(name)))
    }
}

/// Subject alternative names of a certificate (DER): DNS names, mail addresses, URIs and IP
/// addresses.
fn certificate_names(certificate: &[u8]) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(extension)) = parsed.subject_alternative_name() else {
        return Vec::new();
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
            Some((*name).to_owned())
        }
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes)
                .ok()
                .map(|ip| std::net::Ipv4Addr::from(ip).to_string()),
            _ => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|ip| std::net::Ipv6Addr::from(ip).to_string()),
        },
        _ => None,
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(name)
        .collect()
}

/// Makes rustls' configuration; adds every file that was read to `files`.
///
/// # Errors
/// [`WebError::Read`] and [`WebError::Tls`].
pub(super) fn server_config(
    section: TlsSection,
    folder: &Path,
    files: &mut Vec<PathBuf>,
) -> Result<(ServerConfig, AllowedSans), WebError> {
    let bad = |what: &str, problem: String| WebError::Tls {
        what: what.to_owned(),
        problem,
    };
    let mut pem = |what, inline: Option<String>, file: Option<PathBuf>| match (inline, file) {
        (Some(_), Some(_)) => Err(bad(what, format!("give {what} or {what}_file, not both"))),
        (Some(text), None) => Ok(Some((what.to_owned(), text.into_bytes()))),
        (None, Some(file)) => {
            let path = folder.join(file);
            let text = std::fs::read(&path).map_err(|source| WebError::Read {
                path: path.clone(),
                source,
            })?;
            files.push(path.clone());
            Ok(Some((path.display().to_string(), text)))
        }
        (None, None) => Ok(None),
    };
    let missing = |what: &str| bad(what, format!("give {what}_file"));
    let (what, text) =
        pem("cert", section.cert, section.cert_file)?.ok_or_else(|| missing("cert"))?;
    let chain = certificates(&what, &text)?;
    let (what, text) = pem("key", section.key, section.key_file)?.ok_or_else(|| missing("key"))?;
    let key =
        PrivateKeyDer::from_pem_slice(&text).map_err(|error| bad(&what, error.to_string()))?;
    let ca = pem("client_ca", section.client_ca, section.client_ca_file)?;

    let provider = provider(&section.cipher_suites)?;
    let (min, max) = (
        section.min_version.unwrap_or(Version::Tls12),
        section.max_version.unwrap_or(Version::Tls13),
    );
    let versions: Vec<_> = [
        (Version::Tls12, &version::TLS12),
        (Version::Tls13, &version::TLS13),
    ]
    .into_iter()
    .filter(|(version, _)| (min..=max).contains(version))
    .map(|(_, supported)| supported)
    .collect();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(|error| bad("min_version, max_version, cipher_suites", error.to_string()))?;
    let builder = match (section.client_auth_type, ca) {
        (ClientAuth::NoClientCert, None) => builder.with_no_client_auth(),
        (ClientAuth::NoClientCert, Some(_)) => {
            let problem = "a client CA has no effect without client_auth_type".to_owned();
            return Err(bad("client_ca_file", problem));
        }
        (_, None) => return Err(missing("client_ca")),
        (kind, Some((what, text))) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&what, &text)? {
                let added = roots.add(certificate);
                added.map_err(|error| bad(&what, error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if kind == ClientAuth::VerifyClientCertIfGiven {
                verifier.allow_unauthenticated()
            } else {
                verifier
            };
            let verifier = verifier
                .build()
                .map_err(|error| bad(&what, error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| bad("cert_file, key_file", error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((config, AllowedSans(section.client_allowed_sans)))
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, WebError> {
    let bad = |problem: String| WebError::Tls {
        what: what.to_owned(),
        problem,
    };
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(error.to_string()))?;
    if found.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    Ok(found)
}

/// The cipher suites asked for, by the names Go and IANA give them; all if none is named.
fn provider(names: &[String]) -> Result<Arc<CryptoProvider>, WebError> {
    let mut provider = ring::default_provider();
    if names.is_empty() {
        return Ok(Arc::new(provider));
    }
    let iana = |suite: &rustls::SupportedCipherSuite| {
        // rustls spells those of TLS 1.3 TLS13_..., everybody else TLS_...
        let name = format!("{:?}", suite.suite());
        name.replacen("TLS13_", "TLS_", 1)
    };
    let all = provider.cipher_suites.clone();
    provider.cipher_suites = names
        .iter()
        .map(|name| {
            let found = all.iter().find(|suite| iana(suite) == *name);
            found.copied().ok_or_else(|| WebError::Tls {
                what: "cipher_suites".to_owned(),
                problem: format!(
                    "{name} is unknown; known are {}",
                    all.iter().map(iana).collect::<Vec<_>>().join(", ")
                ),
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Arc::new(provider))
}
