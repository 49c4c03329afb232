//! The success result of ADD in the shape of each version of the spec.

use crate::config::Version;
use serde_json::{Map, Value, json};
use weft_api::cni::{AddResult, Attachment};

/// The result as `version` wants it.
#[must_use]
pub fn render(version: Version, attachment: &Attachment, netns: &str, added: &AddResult) -> Value {
    let with_mtu = version.at_least("1.1.0");
    let interface = |name: &str, mac: &str, sandbox: Option<&str>| {
        let mut interface = Map::new();
        interface.insert("name".into(), json!(name));
        interface.insert("mac".into(), json!(mac));
        if with_mtu {
            interface.insert("mtu".into(), json!(added.mtu));
        }
        if let Some(sandbox) = sandbox {
            interface.insert("sandbox".into(), json!(sandbox));
        }
        Value::Object(interface)
    };
    let mut ips = Vec::new();
    let mut routes = Vec::new();
    for (address, gateway) in &added.addresses {
        let mut ip = Map::new();
        if !version.at_least("1.0.0") {
            ip.insert("version".into(), json!(if gateway.is_ipv4() { "4" } else { "6" }));
        }
        ip.insert("address".into(), json!(address));
        ip.insert("gateway".into(), json!(gateway));
        // Index into `interfaces`: the one in the container.
        ip.insert("interface".into(), json!(1));
        ips.push(Value::Object(ip));
        routes.push(json!({ "dst": if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, "gw": gateway }));
    }
    json!({
        "cniVersion": version.as_str(),
        "interfaces": [
            interface(&added.host_ifname, &added.host_mac, None),
            interface(&attachment.ifname, &added.pod_mac, Some(netns)),
        ],
        "ips": ips,
        "routes": routes,
        "dns": {},
    })
}
