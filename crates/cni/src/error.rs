//! Errors, in the form of the CNI spec.

use serde::{Deserialize, Serialize};
use weft_api::failure::{Failure, Kind};

/// An error in the form and with the codes of the CNI spec 1.1.0, section 5 ("Error").
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct CniError {
    /// See [`code`].
    pub code: u32,
    /// Short.
    pub msg: String,
    /// Long.
    #[serde(default)]
    pub details: String,
}

/// Codes of the CNI spec; 100 and above are the plugin's own.
pub mod code {
    /// Incompatible CNI version.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// Unsupported field in the network configuration.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// Container unknown or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// Invalid necessary environment variables.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// I/O failure.
    pub const IO_FAILURE: u32 = 5;
    /// Failed to decode content.
    pub const DECODING_FAILURE: u32 = 6;
    /// Invalid network config.
    pub const INVALID_CONFIG: u32 = 7;
    /// Try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// The plugin is not available (STATUS).
    pub const NOT_AVAILABLE: u32 = 50;
    /// The plugin is not available, and existing containers may have limited connectivity (STATUS).
    pub const NOT_AVAILABLE_LIMITED: u32 = 51;
    /// Ours: the agent refused.
    pub const AGENT: u32 = 100;
    /// Ours: no addresses left.
    pub const NO_ADDRESSES: u32 = 101;
}

impl From<Failure> for CniError {
    fn from(failure: Failure) -> Self {
        let code = match failure.kind {
            Kind::NotReady => code::NOT_AVAILABLE,
            Kind::TryAgain => code::TRY_AGAIN_LATER,
            Kind::Malformed => code::DECODING_FAILURE,
            Kind::Misconfigured => code::INVALID_CONFIG,
            Kind::NoContainer => code::UNKNOWN_CONTAINER,
            Kind::NoAddresses => code::NO_ADDRESSES,
            Kind::System => code::IO_FAILURE,
            Kind::Refused => code::AGENT,
        };
        Self { code, msg: failure.summary, details: failure.details }
    }
}
