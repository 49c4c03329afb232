//! The cluster's own certificate authority, the server's certificate, and client certificates in kubeconfig files.
//!
//! The authority's key is kept in the data directory, readable by root alone. A client is who its certificate says:
//! the common name is the user, the organisations are its groups.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_sys::files::{PRIVATE, write_durably};

/// What went wrong with the certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{file}")]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate cannot be made or read.
    #[error("certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS refuses the certificates.
    #[error("TLS")]
    Tls(#[from] rustls::Error),
    /// The verifier of client certificates cannot be made.
    #[error("verifier of client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The authority and the server's certificate.
pub struct Pki {
    authority_pem: String,
    authority: Issuer<'static, KeyPair>,
    names: Vec<String>,
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").field("names", &self.names).finish_non_exhaustive()
    }
}

/// A client's certificate and key, as PEM.
#[derive(Clone)]
pub struct ClientCertificate {
    /// Certificate.
    pub certificate: String,
    /// Key.
    pub key: String,
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCertificate").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Pki {
    /// Takes the authority from `dir`, or makes it there. `names` are the addresses and names of the server.
    ///
    /// # Errors
    /// That the files cannot be read, written or understood.
    pub fn create_or_load(dir: &Path, names: &[String]) -> Result<Self, PkiError> {
        std::fs::create_dir_all(dir).map_err(|source| PkiError::File { file: dir.to_owned(), source })?;
        let (certificate_file, key_file) = (dir.join("ca.crt"), dir.join("ca.key"));
        let read = |file: &Path| match std::fs::read_to_string(file) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PkiError::File { file: file.to_owned(), source }),
        };
        let (pem, key) = match (read(&certificate_file)?, read(&key_file)?) {
            (Some(pem), Some(key)) => (pem, KeyPair::from_pem(&key)?),
            _ => {
                let key = KeyPair::generate()?;
                let pem = authority_params().self_signed(&key)?.pem();
                // The key first: a certificate without its key is made anew.
                write_private(&key_file, &key.serialize_pem())?;
                write_private(&certificate_file, &pem)?;
                (pem, key)
            }
        };
        let authority = Issuer::from_ca_cert_pem(&pem, key)?;
        Ok(Self { authority_pem: pem, authority, names: names.to_vec() })
    }

    /// The authority's certificate, as PEM.
    #[must_use]
    pub fn authority_pem(&self) -> &str {
        &self.authority_pem
    }

    /// A certificate for a client: `user` of `group`.
    ///
    /// # Errors
    /// That it cannot be made.
    pub fn client(&self, user: &str, group: &str) -> Result<ClientCertificate, PkiError> {
        let mut params = leaf_params(ExtendedKeyUsagePurpose::ClientAuth);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.distinguished_name.push(DnType::CommonName, user);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?.pem();
        Ok(ClientCertificate { certificate, key: key.serialize_pem() })
    }

    /// A certificate for the agent of a node, for both ends of connections between agents, beside its key and the
    /// authority's certificate: `agent.crt`, `agent.key`, `ca.crt` in `dir`.
    ///
    /// # Errors
    /// That it cannot be made or written.
    pub fn write_agent(&self, dir: &Path, node: &str) -> Result<(), PkiError> {
        let mut params = leaf_params(ExtendedKeyUsagePurpose::ServerAuth);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        params.distinguished_name.push(DnType::OrganizationName, "weft:agents");
        params.distinguished_name.push(DnType::CommonName, node);
        params.subject_alt_names.push(SanType::DnsName(node.try_into()?));
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?.pem();
        std::fs::create_dir_all(dir).map_err(|source| PkiError::File { file: dir.to_owned(), source })?;
        write_private(&dir.join("agent.key"), &key.serialize_pem())?;
        write_private(&dir.join("agent.crt"), &certificate)?;
        write_private(&dir.join("ca.crt"), &self.authority_pem)
    }

    /// The TLS configuration of the server: HTTP/2 and HTTP/1.1, client certificates of this authority.
    ///
    /// # Errors
    /// That the certificates cannot be made or used.
    pub fn server(&self) -> Result<rustls::ServerConfig, PkiError> {
        let mut params = leaf_params(ExtendedKeyUsagePurpose::ServerAuth);
        params.distinguished_name.push(DnType::CommonName, "weft-apiserver");
        for name in &self.names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in rustls_pemfile::certs(&mut self.authority_pem.as_bytes()) {
            let certificate = certificate.map_err(|source| PkiError::File { file: PathBuf::from("ca.crt"), source })?;
            roots.add(certificate)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// A kubeconfig file for `server` (`https://127.0.0.1:6443`) with a new certificate for `user`.
    ///
    /// # Errors
    /// That the certificate cannot be made.
    pub fn kubeconfig(&self, cluster: &str, server: &str, user: &str, group: &str) -> Result<String, PkiError> {
        let client = self.client(user, group)?;
        let authority = STANDARD.encode(&self.authority_pem);
        let certificate = STANDARD.encode(&client.certificate);
        let key = STANDARD.encode(&client.key);
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "preferences": {},
            "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": authority}}],
            "users": [{"name": user, "user": {"client-certificate-data": certificate, "client-key-data": key}}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
            "current-context": cluster,
        });
        // JSON is YAML, and every reader of kubeconfig files takes it.
        Ok(format!("{config:#}\n"))
    }

    /// Writes such a file for an administrator, readable by its owner alone, in one step.
    ///
    /// # Errors
    /// That it cannot be made or written.
    pub fn write_kubeconfig(&self, file: &Path, cluster: &str, server: &str, user: &str) -> Result<(), PkiError> {
        write_private(file, &self.kubeconfig(cluster, server, user, "system:masters")?)
    }

    /// Writes such a file for a service account, readable by its owner alone, in one step.
    ///
    /// # Errors
    /// That it cannot be made or written.
    pub fn write_account_kubeconfig(
        &self,
        file: &Path,
        cluster: &str,
        server: &str,
        (namespace, name): (&str, &str),
    ) -> Result<(), PkiError> {
        let user = format!("system:serviceaccount:{namespace}:{name}");
        write_private(file, &self.kubeconfig(cluster, server, &user, "system:serviceaccounts")?)
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "weft-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn leaf_params(usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params
}

fn write_private(file: &Path, text: &str) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { file: file.to_owned(), source };
    write_durably(file, text.as_bytes(), PRIVATE).map_err(failed)
}
