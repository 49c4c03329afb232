//! What a request asks for: the path's parts, the query's options, the media types.

use super::error::ApiError;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

/// What a path below `/api` or `/apis` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Group; empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace; empty for none or all.
    pub namespace: String,
    /// Plural of the resource.
    pub resource: String,
    /// Name; empty for the collection.
    pub name: String,
    /// Subresource; empty for the object itself.
    pub subresource: String,
}

/// Reads the path of a resource; `None` when it is none.
pub fn target(path: &str) -> Option<Target> {
    let mut parts = Vec::new();
    for part in path.strip_prefix('/')?.trim_end_matches('/').split('/') {
        parts.push(decode(part, false)?);
    }
    let mut parts = parts.into_iter();
    let mut target = Target::default();
    match parts.next()?.as_str() {
        "api" => {}
        "apis" => target.group = parts.next()?,
        _ => return None,
    }
    target.version = parts.next()?;
    let rest: Vec<String> = parts.collect();
    let mut rest = rest.as_slice();
    // /namespaces/NAME/RESOURCE, but /namespaces/NAME and /namespaces/NAME/status are the namespace itself.
    let own = ["status", "finalize"];
    if let [first, namespace, third, ..] = rest
        && first == "namespaces"
        && !own.contains(&third.as_str())
    {
        target.namespace.clone_from(namespace);
        rest = &rest[2..];
    }
    let [resource, tail @ ..] = rest else { return None };
    target.resource.clone_from(resource);
    match tail {
        [] => {}
        [name] => target.name.clone_from(name),
        [name, subresource] => {
            target.name.clone_from(name);
            target.subresource.clone_from(subresource);
        }
        _ => return None,
    }
    let filled = !target.group.is_empty() || path.starts_with("/api/");
    (filled && !target.version.is_empty() && !target.resource.is_empty()).then_some(target)
}

/// The query's parameters, decoded, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// That it is not well encoded.
    pub fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let bad = || ApiError::bad_request("the query is not well encoded");
        query
            .unwrap_or_default()
            .split('&')
            .filter(|p| !p.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decode(name, true).ok_or_else(bad)?, decode(value, true).ok_or_else(bad)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Adds a parameter.
    pub fn push(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), value.to_owned()));
    }

    /// First value of a parameter; empty when it is not given.
    pub fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A yes or no.
    ///
    /// # Errors
    /// That it is neither.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.text(name) {
            "" | "false" | "0" => Ok(false),
            "true" | "1" => Ok(true),
            other => Err(ApiError::bad_request(format!("query {name}: {other:?}: expected true or false"))),
        }
    }

    /// A whole number, not negative.
    ///
    /// # Errors
    /// That it is none.
    pub fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!("query {name}: {text:?}: expected a whole number, not negative"))
            }),
        }
    }

    /// Whether nothing is to be kept.
    ///
    /// # Errors
    /// That `dryRun` is something other than `All`.
    pub fn dry_run(&self) -> Result<bool, ApiError> {
        let mut dry = false;
        for value in self.all("dryRun") {
            if value != "All" {
                return Err(ApiError::bad_request(format!("query dryRun: {value:?}: expected All")));
            }
            dry = true;
        }
        Ok(dry)
    }
}

/// Undoes percent-encoding. `None` when it is wrong or no UTF-8.
fn decode(text: &str, plus: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                bytes.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'+' if plus => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

/// A way to present objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The objects.
    Plain,
    /// A table of them, for people.
    Table,
    /// Their metadata only.
    Metadata,
    /// Discovery of all groups in one document.
    Aggregated,
}

/// Chooses the form by the Accept header: the first that this server can do.
///
/// # Errors
/// That there is none.
pub fn accepted(headers: &HeaderMap) -> Result<Form, ApiError> {
    let header = headers.get(ACCEPT).map_or("*/*", |v| v.to_str().unwrap_or(""));
    for offer in header.split(',') {
        let mut parts = offer.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        if !matches!(kind, "" | "*/*" | "application/*" | "application/json" | "text/plain") {
            continue;
        }
        let (mut shape, mut version) = ("", "");
        for part in parts {
            match part.split_once('=') {
                Some(("as", s)) => shape = s,
                Some(("v", v)) => version = v,
                _ => {}
            }
        }
        match (shape, version) {
            ("", _) => return Ok(Form::Plain),
            ("Table", "v1") => return Ok(Form::Table),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "v1") => return Ok(Form::Metadata),
            ("APIGroupDiscoveryList", "v2") => return Ok(Form::Aggregated),
            _ => {}
        }
    }
    Err(ApiError::not_acceptable(header))
}

/// The body's media type without its parameters.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_resources() {
        let t = target("/api/v1/namespaces/a/pods/p/log").unwrap();
        assert_eq!((t.namespace.as_str(), t.resource.as_str(), t.name.as_str()), ("a", "pods", "p"));
        assert_eq!(t.subresource, "log");
        let t = target("/api/v1/namespaces/a").unwrap();
        assert_eq!((t.namespace.as_str(), t.resource.as_str(), t.name.as_str()), ("", "namespaces", "a"));
        let t = target("/api/v1/namespaces/a/status").unwrap();
        assert_eq!((t.resource.as_str(), t.name.as_str(), t.subresource.as_str()), ("namespaces", "a", "status"));
        let t = target("/apis/apps/v1/deployments").unwrap();
        assert_eq!((t.group.as_str(), t.version.as_str(), t.resource.as_str()), ("apps", "v1", "deployments"));
        assert_eq!(target("/apis/apps/v1"), None);
        assert_eq!(target("/metrics/v1/x"), None);
        assert_eq!(target("/api/v1/pods/%zz"), None);
    }

    #[test]
    fn queries_are_decoded() {
        let q = Query::parse(Some("labelSelector=a%3Db%2Cc&command=x&command=y+z&watch=1")).unwrap();
        assert_eq!(q.text("labelSelector"), "a=b,c");
        assert_eq!(q.all("command").collect::<Vec<_>>(), ["x", "y z"]);
        assert!(q.flag("watch").unwrap());
        assert!(Query::parse(Some("a=%")).is_err());
    }
}
