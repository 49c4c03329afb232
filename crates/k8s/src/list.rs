//! Reading a whole collection, page by page.

use crate::client::Client;
use crate::error::Error;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// All but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[derive(Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: PageMetadata,
    items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(rename = "continue", default)]
    more: Option<String>,
}

/// Hands every object of a collection to `take`.
pub(crate) async fn each<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    page: u32,
    query: &[(&str, String)],
    mut take: impl FnMut(T),
) -> Result<(), Error> {
    let mut more: Option<String> = None;
    loop {
        let mut query = query.to_vec();
        query.push(("limit", page.to_string()));
        query.extend(more.take().map(|token| ("continue", token)));
        let answer: Page<T> = client.get(&with_query(path, &query)).await?;
        answer.items.unwrap_or_default().into_iter().for_each(&mut take);
        more = answer.metadata.more.filter(|token| !token.is_empty());
        if more.is_none() {
            return Ok(());
        }
    }
}

pub(crate) fn with_query(path: &str, query: &[(&str, String)]) -> String {
    let pairs = query.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, ENCODED)));
    let query: Vec<String> = pairs.collect();
    format!("{path}?{}", query.join("&"))
}
