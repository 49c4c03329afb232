//! Tokens of the machine's managed identity, from its metadata service.

use super::settings::Settings;
use crate::CloudError;
use serde::Deserialize;
use std::time::Duration;
use tokio::time::Instant;

/// A token is renewed so long before it ends.
const EARLY: Duration = Duration::from_secs(300);
/// No token is kept for longer, whatever is said of it.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A token, and until when it is good.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) secret: String,
    until: Instant,
}

#[derive(Deserialize)]
struct Wire {
    access_token: String,
    /// A number, written as a text by the real service.
    expires_in: serde_json::Value,
}

impl Token {
    pub(super) fn good(&self) -> bool {
        Instant::now() < self.until
    }
}

/// Where a token is asked for.
pub(super) fn url(settings: &Settings) -> String {
    let encode = |text: &str| -> String {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
        text.bytes()
            .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
            .collect()
    };
    let resource = encode("https://management.azure.com/");
    let mut url =
        format!("{}/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}", settings.metadata);
    if let Some(id) = &settings.client_id {
        url.push_str("&client_id=");
        url.push_str(&encode(id));
    }
    url
}

/// Reads the answer.
pub(super) fn read(body: &[u8]) -> Result<Token, CloudError> {
    // Its text is a secret: no error shows it.
    let wire: Wire = serde_json::from_slice(body)
        .map_err(|_| CloudError::invalid("token: expected access_token and expires_in, found something else"))?;
    let seconds = match &wire.expires_in {
        serde_json::Value::Number(number) => number.as_u64(),
        serde_json::Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let seconds = seconds.ok_or_else(|| CloudError::invalid("token: expires_in: expected a number of seconds"))?;
    let visible = |byte: u8| byte.is_ascii_graphic();
    if wire.access_token.is_empty() || !wire.access_token.bytes().all(visible) {
        return Err(CloudError::invalid("token: access_token: expected visible ASCII characters"));
    }
    let lasts = Duration::from_secs(seconds).min(LONGEST).saturating_sub(EARLY).max(Duration::from_secs(1));
    Ok(Token { secret: wire.access_token, until: Instant::now() + lasts })
}
