//! Reading a kubeconfig file and writing the one that nodes use.

use base64::Engine;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What is wrong with a kubeconfig file.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// It cannot be read.
    #[error("read {file}")]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not YAML of that form.
    #[error("{file}: {why}")]
    Parse {
        /// Which.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// It lacks something.
    #[error("{file}: {field}: expected {expected}")]
    Field {
        /// Which.
        file: PathBuf,
        /// Where in it.
        field: String,
        /// What should be there.
        expected: String,
    },
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct File {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(rename = "current-context", default)]
    current_context: String,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_authority: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_authority_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_server_name: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct User {
    #[serde(rename = "client-certificate", skip_serializing_if = "Option::is_none")]
    certificate: Option<PathBuf>,
    #[serde(rename = "client-certificate-data", skip_serializing_if = "Option::is_none")]
    certificate_data: Option<String>,
    #[serde(rename = "client-key", skip_serializing_if = "Option::is_none")]
    key: Option<PathBuf>,
    #[serde(rename = "client-key-data", skip_serializing_if = "Option::is_none")]
    key_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(rename = "tokenFile", skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

/// How to reach an API server and as whom.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Name in the server's certificate.
    pub server_name: String,
    /// PEM of the authorities that sign it.
    pub authority: Vec<u8>,
    /// PEM of the client's certificate and of its key.
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
    /// Bearer token.
    pub token: Option<String>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Access {
    /// Reads the current context of a kubeconfig file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| KubeconfigError::Read { file: path.to_owned(), source })?;
        let file: File = serde_saphyr::from_str(&text)
            .map_err(|e| KubeconfigError::Parse { file: path.to_owned(), why: e.to_string() })?;
        let lacks = |field: &str, expected: &str| KubeconfigError::Field {
            file: path.to_owned(),
            field: field.to_owned(),
            expected: expected.to_owned(),
        };
        let context = file
            .contexts
            .iter()
            .find(|c| c.name == file.current_context)
            .or(file.contexts.first())
            .ok_or_else(|| lacks("contexts", "at least one"))?;
        let cluster = file
            .clusters
            .iter()
            .find(|c| c.name == context.context.cluster)
            .map(|c| &c.cluster)
            .ok_or_else(|| lacks("clusters", "the one that the context names"))?;
        let user = file
            .users
            .iter()
            .find(|u| u.name == context.context.user)
            .map(|u| &u.user)
            .ok_or_else(|| lacks("users", "the one that the context names"))?;
        let rest = cluster
            .server
            .strip_prefix("https://")
            .ok_or_else(|| lacks("server", "an address that begins with https://"))?;
        let uri: http::Uri = format!("https://{rest}").parse().map_err(|_| lacks("server", "an address"))?;
        let host = uri.host().ok_or_else(|| lacks("server", "a host"))?.trim_matches(['[', ']']).to_owned();
        let base = path.parent().unwrap_or(Path::new("/"));
        let load = |data: &Option<String>, other: &Option<PathBuf>, field: &str| {
            pem(data.as_deref(), other.as_deref(), base).map_err(|why| lacks(field, &why))
        };
        let certificate = load(&user.certificate_data, &user.certificate, "client-certificate")?;
        let key = load(&user.key_data, &user.key, "client-key")?;
        let token = match (&user.token, &user.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(f)) => Some(
                std::fs::read_to_string(base.join(f))
                    .map_err(|source| KubeconfigError::Read { file: f.clone(), source })?
                    .trim()
                    .to_owned(),
            ),
            (None, None) => None,
        };
        Ok(Self {
            server_name: cluster.tls_server_name.clone().unwrap_or_else(|| host.clone()),
            port: uri.port_u16().unwrap_or(443),
            host,
            authority: load(
                &cluster.certificate_authority_data,
                &cluster.certificate_authority,
                "certificate-authority",
            )?
            .ok_or_else(|| lacks("certificate-authority-data", "a certificate"))?,
            certificate: certificate.zip(key),
            token,
        })
    }

    /// A kubeconfig that reaches the same server by another address.
    #[must_use]
    pub fn kubeconfig_via(&self, server: std::net::SocketAddr) -> String {
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let file = File {
            api_version: "v1".into(),
            kind: "Config".into(),
            current_context: "weft".into(),
            clusters: vec![NamedCluster {
                name: "weft".into(),
                cluster: Cluster {
                    server: format!("https://{server}"),
                    certificate_authority: None,
                    certificate_authority_data: Some(encode(&self.authority)),
                    tls_server_name: Some(self.server_name.clone()),
                },
            }],
            users: vec![NamedUser {
                name: "weft".into(),
                user: User {
                    certificate_data: self.certificate.as_ref().map(|(c, _)| encode(c)),
                    key_data: self.certificate.as_ref().map(|(_, k)| encode(k)),
                    token: self.token.clone(),
                    ..User::default()
                },
            }],
            contexts: vec![NamedContext {
                name: "weft".into(),
                context: Context { cluster: "weft".into(), user: "weft".into() },
            }],
        };
        // JSON is YAML.
        serde_json::to_string_pretty(&file).expect("strings only")
    }
}

fn pem(data: Option<&str>, file: Option<&Path>, base: &Path) -> Result<Option<Vec<u8>>, String> {
    if let Some(data) = data {
        let compact: String = data.split_ascii_whitespace().collect();
        return base64::engine::general_purpose::STANDARD.decode(compact).map(Some).map_err(|e| format!("base64: {e}"));
    }
    file.map(|f| std::fs::read(base.join(f)).map_err(|e| format!("a readable file: {e}"))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes() {
        let access = Access {
            host: "api.example".into(),
            port: 6443,
            server_name: "api.example".into(),
            authority: b"CA".to_vec(),
            certificate: Some((b"cert".to_vec(), b"key".to_vec())),
            token: None,
        };
        let dir = std::env::temp_dir().join(format!("weft-kubeconfig-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temporary directory");
        let file = dir.join("config");
        let text = access.kubeconfig_via("[fd31::1]:6443".parse().expect("an address"));
        std::fs::write(&file, text).expect("writes");
        let back = Access::read(&file).expect("reads");
        std::fs::remove_dir_all(&dir).expect("removes");
        assert_eq!((back.host.as_str(), back.port), ("fd31::1", 6443));
        assert_eq!(back.server_name, "api.example");
        assert_eq!(back.certificate, access.certificate);
    }
}
