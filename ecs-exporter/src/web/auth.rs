//! Users and their bcrypt hashes.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::WebError;

/// Cost of new hashes, as exporter-toolkit's documentation has it.
const COST: u32 = 10;

/// Verified passwords that are remembered, as bcrypt is slow by design.
const REMEMBERED: usize = 100;

/// A hash nobody knows the password of: an unknown user takes as long as a known one.
const NOBODY: &str = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi";

/// Who may ask, by user name.
#[derive(Debug, Default)]
pub(crate) struct Users {
    hashes: BTreeMap<String, String>,
    verified: Mutex<HashSet<[u8; 32]>>,
}

impl Users {
    /// # Errors
    /// [`WebError::User`].
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Result<Self, WebError> {
        for (user, hash) in &hashes {
            // The parser's error quotes the text, which may be a password in plain.
            if hash.parse::<bcrypt::HashParts>().is_err() {
                return Err(WebError::User(user.clone()));
            }
        }
        Ok(Self {
            hashes,
            verified: Mutex::default(),
        })
    }

    /// Whether nobody has to say who he is.
    pub(crate) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether the value of an `Authorization` header is a user with his password. Takes some 50 ms
    /// of CPU time the first time: call it off the event loop.
    pub(crate) fn admits(&self, authorization: Option<&str>) -> bool {
        if self.is_empty() {
            return true;
        }
        let Some((user, password)) = authorization.and_then(credentials) else {
            return false;
        };
        let hash = self.hashes.get(&user).map_or(NOBODY, String::as_str);
        let key = fingerprint(&[&user, &password, hash]);
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.contains(&key) {
            return true;
        }
        drop(verified);
        let good =
            bcrypt::verify(&password, hash).unwrap_or(false) && self.hashes.contains_key(&user);
        if good {
            verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
            if verified.len() >= REMEMBERED {
                verified.clear();
            }
            verified.insert(key);
        }
        good
    }
}

fn credentials(authorization: &str) -> Option<(String, String)> {
    let (scheme, rest) = authorization.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// A digest from which nothing can be read back; lengths keep the parts apart.
fn fingerprint(parts: &[&str]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// A bcrypt hash for the web configuration.
///
/// # Errors
/// A password of more than 72 bytes, of which bcrypt would ignore the rest.
pub fn hash_password(password: &str) -> Result<String, bcrypt::BcryptError> {
    bcrypt::non_truncating_hash(password, COST)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[test]
    fn only_the_right_password_of_a_known_user_is_admitted() {
        // The least cost there is: this is about who gets in.
        let hash = bcrypt::hash("secret", 4).unwrap();
        let users = Users::new([("ann".to_owned(), hash)].into()).unwrap();
        for _ in 0..2 {
            assert!(users.admits(Some(&basic("ann:secret"))));
            for other in [
                "ann:Secret",
                "ann:",
                "bob:secret",
                ":",
                "ann",
                "ann:secret ",
            ] {
                assert!(!users.admits(Some(&basic(other))), "{other}");
            }
        }
        for header in ["", "Basic", "Basic !", "Bearer x", "Basic YQ"] {
            assert!(!users.admits(Some(header)), "{header}");
        }
        assert!(!users.admits(None));
        assert!(Users::default().admits(None));
    }

    #[test]
    fn a_hash_that_is_none_is_refused_and_one_of_ours_is_not() {
        let error = Users::new([("ann".to_owned(), "plain".to_owned())].into()).unwrap_err();
        assert!(error.to_string().contains("\"ann\""), "{error}");
        assert!(!error.to_string().contains("plain"), "{error}");
        let hash = hash_password("x").unwrap();
        assert!(Users::new([("ann".to_owned(), hash)].into()).is_ok());
        assert!(hash_password(&"x".repeat(73)).is_err());
    }
}
