//! Mutual TLS between agents. Both ends present a certificate of the cluster's authority for an agent: with the
//! organisation [`ORGANISATION`], the node's name among its DNS names, and both key usages (client and server).

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use weft_daemon::tasks::lock;

/// Organisation in the certificates of agents: other holders of a certificate of the authority, users say, are refused.
pub const ORGANISATION: &str = "weft:agents";

/// Paths of certificate and key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// The agent's certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The authority's certificates, PEM.
    pub authority: PathBuf,
}

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not what it should be.
    #[error("{file}: expected {expected}")]
    File {
        /// Which.
        file: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The certificate, key or authority does not serve for TLS.
    #[error("TLS")]
    Tls(#[from] rustls::Error),
    /// The authority does not serve to verify clients.
    #[error("verifier of agents")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// TLS settings of both ends.
#[derive(Clone, Debug)]
pub struct Configs {
    /// Of the client.
    pub client: Arc<ClientConfig>,
    /// Of the server.
    pub server: Arc<ServerConfig>,
}

/// The files, read again when they change: certificates are renewed while the agent runs.
#[derive(Debug)]
pub struct Credentials {
    files: Files,
    read: Mutex<Option<(Stamp, Configs)>>,
}

type Stamp = [Option<SystemTime>; 3];

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn read(files: Files) -> Result<Self, TlsError> {
        let credentials = Self { files, read: Mutex::default() };
        credentials.configs()?;
        Ok(credentials)
    }

    /// The settings of the files as they are now. Changed files that cannot be used do not replace what was read before.
    ///
    /// # Errors
    /// No files could be used so far.
    pub fn configs(&self) -> Result<Configs, TlsError> {
        let Files { certificate, key, authority } = &self.files;
        let changed = |file: &PathBuf| std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
        let stamp = [changed(certificate), changed(key), changed(authority)];
        let mut read = lock(&self.read);
        match &*read {
            Some((as_of, configs)) if *as_of == stamp => return Ok(configs.clone()),
            _ => {}
        }
        match (configs(&self.files), &mut *read) {
            (Ok(configs), read) => {
                *read = Some((stamp, configs.clone()));
                Ok(configs)
            }
            (Err(error), Some((as_of, configs))) => {
                tracing::warn!(
                    error = weft_sys::error::describe(&error),
                    "cannot read the changed certificates of agents; the former ones stay in use"
                );
                *as_of = stamp;
                Ok(configs.clone())
            }
            (Err(error), None) => Err(error),
        }
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let expected = "certificates, PEM";
    let failed = |source| TlsError::File { file: file.to_owned(), expected, source };
    let text = std::fs::read(file).map_err(failed)?;
    let found: Vec<_> = rustls_pemfile::certs(&mut text.as_slice()).collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() {
        return Err(failed(io::Error::other("there is none")));
    }
    Ok(found)
}

fn key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let failed = |source| TlsError::File { file: file.to_owned(), expected: "a private key, PEM", source };
    let text = std::fs::read(file).map_err(failed)?;
    let found = rustls_pemfile::private_key(&mut text.as_slice()).map_err(failed)?;
    found.ok_or_else(|| failed(io::Error::other("there is none")))
}

fn configs(files: &Files) -> Result<Configs, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&files.authority)? {
        roots.add(authority)?;
    }
    let roots = Arc::new(roots);
    let chain = certificates(&files.certificate)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain.clone(), key(&files.key)?)?;
    client.alpn_protocols = vec![b"h2".to_vec()];
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key(&files.key)?)?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Configs { client: Arc::new(client), server: Arc::new(server) })
}

/// Whether the other end, whose certificate is verified, is an agent.
#[must_use]
pub fn is_agent(certificates: Option<&[CertificateDer<'_>]>) -> bool {
    let Some(certificate) = certificates.and_then(<[_]>::first) else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    certificate.subject().iter_organization().any(|name| name.as_str() == Ok(ORGANISATION))
}
