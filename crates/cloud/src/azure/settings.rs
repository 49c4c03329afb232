//! Where the cloud is, and as whom it is asked.

use std::time::Duration;

/// How to reach it, and what to use there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Resource Manager, without a slash at the end.
    pub endpoint: String,
    /// The machine's metadata service, without a slash at the end.
    pub metadata: String,
    /// Resource id of the subnet for pods; `None`: the primary interface's own.
    pub pod_subnet: Option<String>,
    /// Client id of the managed identity, if the machine has several.
    pub client_id: Option<String>,
    /// Requests per second, in the long run.
    pub rate: u32,
    /// Requests at once.
    pub burst: u32,
    /// For one request.
    pub request_timeout: Duration,
    /// For a long-running operation.
    pub operation_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            endpoint: "https://management.azure.com".to_owned(),
            metadata: "http://169.254.169.254".to_owned(),
            pod_subnet: None,
            client_id: None,
            rate: 4,
            burst: 20,
            request_timeout: Duration::from_secs(30),
            operation_timeout: Duration::from_secs(300),
        }
    }
}
