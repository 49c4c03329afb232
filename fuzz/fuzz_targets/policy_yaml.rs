//! Any text as a policy: it is read or refused, never more; and what the linter finds no error in, the agent takes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use weft_k8s::convert::{self, Settings};
use weft_lint::{Severity, lint};
use weft_model::intent::{Covers, PolicyKind};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let findings = lint(text);
    let Ok(documents) = serde_saphyr::from_multiple::<Value>(text) else { return };
    let settings = Settings { cidr_covers: Covers::ALL, extended_protocols: true, host_firewall: true };
    let clean = findings.iter().all(|finding| finding.severity != Severity::Error);
    for document in documents.iter().filter(|document| !document.is_null()) {
        // Objects of others are none of the linter's business.
        let known = PolicyKind::ALL
            .into_iter()
            .any(|kind| document["kind"] == kind.name() && document["apiVersion"] == convert::api_version(kind));
        match convert::object(document, &settings) {
            Ok(_) => {}
            Err(problem) => assert!(!(clean && known), "the linter finds nothing, the agent does: {problem}\n{text}"),
        }
    }
});
