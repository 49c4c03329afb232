//! Kinds of services.

use super::{Kind, age, column, conditions_of, flag, list, object, one_of, selector, text, version};
use serde_json::{Value, json};

/// The value may not change once it is set.
fn fixed(mut schema: Value, name: &str) -> Value {
    schema["x-kubernetes-validations"] =
        json!([{"rule": "self == oldSelf", "message": format!("{name} is immutable")}]);
    schema
}

fn ports(about: &str) -> Value {
    let mut number = text("A number from 1 to 65535.");
    number["pattern"] = json!("^([1-9]|[1-5]?[0-9]{2,4}|6[1-4][0-9]{3}|65[1-4][0-9]{2}|655[1-2][0-9]|6553[1-5])$");
    let mut name = text("A name, required where there are several ports: each goes to the backends' port of its name.");
    name["pattern"] = json!("^([0-9]{1,4})|([a-zA-Z0-9]-?)*[a-zA-Z](-?[a-zA-Z0-9])*$");
    let port = object(
        "",
        vec![("port", number), ("protocol", one_of("The protocol.", &["TCP", "UDP"])), ("name", name)],
        &["port", "protocol"],
    );
    list(about, port)
}

/// CiliumLocalRedirectPolicy.
pub(super) fn local_redirect() -> Kind {
    let about = "Traffic to an address or a Service goes to pods of the client's own node.";
    let address = object(
        "An address and its ports. Without a pod on the node, the traffic goes to the address itself.",
        vec![("ip", text("The address.")), ("toPorts", ports("Its ports."))],
        &["ip", "toPorts"],
    );
    let service = object(
        "A Service of type ClusterIP. Without a pod on the node, the traffic goes to the Service's own backends.",
        vec![
            ("serviceName", text("The Service's name.")),
            ("namespace", text("The Service's namespace: the policy's own.")),
            ("toPorts", ports("Which of its ports; absent: all.")),
        ],
        &["serviceName", "namespace"],
    );
    let mut frontend =
        object("What is redirected.", vec![("addressMatcher", address), ("serviceMatcher", service)], &[]);
    frontend["oneOf"] = json!([{"required": ["addressMatcher"]}, {"required": ["serviceMatcher"]}]);
    let backend = object(
        "Where it goes.",
        vec![
            ("localEndpointSelector", selector("Pods of the policy's namespace, on the client's node.")),
            ("toPorts", ports("Their ports.")),
        ],
        &["localEndpointSelector", "toPorts"],
    );
    let mut skip = flag("The pods that the traffic goes to reach what is behind the frontend themselves.");
    skip["default"] = json!(false);
    let spec = object(
        "",
        vec![
            ("redirectFrontend", fixed(frontend, "redirectFrontend")),
            ("redirectBackend", fixed(backend, "redirectBackend")),
            ("skipRedirectFromBackend", fixed(skip, "skipRedirectFromBackend")),
            ("description", text("Free text.")),
        ],
        &["redirectFrontend", "redirectBackend"],
    );
    Kind {
        about,
        group: "cilium.io",
        scope: "Namespaced",
        kind: "CiliumLocalRedirectPolicy",
        plural: "ciliumlocalredirectpolicies",
        short_names: &["lrp"],
        categories: &["cilium", "ciliumpolicy"],
        annotations: Value::Null,
        versions: vec![version("v2", json!([age()]), about, vec![("spec", spec)], &["metadata"])],
    }
}

/// CiliumLoadBalancerIPPool.
pub(super) fn ip_pool() -> Kind {
    let about = "Addresses for Services of type LoadBalancer.";
    let block = object(
        "",
        vec![
            ("cidr", text("A prefix, or else start and stop.")),
            ("start", text("The first address.")),
            ("stop", text("The last address; absent: there is one.")),
        ],
        &[],
    );
    let mut disabled = flag("Nobody gets a new address. Services that have one keep it.");
    disabled["default"] = json!(false);
    let ends = "Whether the first and the last address of each prefix are given away, where it has more than two: Yes, \
                the default, or No.";
    let spec = object(
        "",
        vec![
            (
                "serviceSelector",
                selector(
                    "The Services that may have an address, by their labels, io.kubernetes.service.name and \
                     io.kubernetes.service.namespace; absent: all.",
                ),
            ),
            ("allowFirstLastIPs", one_of(ends, &["Yes", "No"])),
            ("blocks", list("The addresses.", block)),
            ("disabled", disabled),
        ],
        &[],
    );
    let status = conditions_of(
        "What is true of the pool now.",
        "cilium.io/PoolConflict: whether it overlaps an older one. cilium.io/IPsTotal, IPsAvailable, IPsUsed: the \
         message is the number.",
    );
    let of = |name: &str, storage: bool| {
        let condition =
            |kind: &str, field: &str| format!(".status.conditions[?(@.type==\"cilium.io/{kind}\")].{field}");
        let columns = json!([
            column("Disabled", "boolean", ".spec.disabled"),
            column("Conflicting", "string", &condition("PoolConflict", "status")),
            column("IPs Available", "string", &condition("IPsAvailable", "message")),
            age(),
        ]);
        let parts = vec![("spec", spec.clone()), ("status", status.clone())];
        let mut version = version(name, columns, about, parts, &["metadata", "spec"]);
        version["storage"] = json!(storage);
        if !storage {
            version["deprecated"] = json!(true);
        }
        version
    };
    Kind {
        about,
        group: "cilium.io",
        scope: "Cluster",
        kind: "CiliumLoadBalancerIPPool",
        plural: "ciliumloadbalancerippools",
        short_names: &["ippools", "ippool", "lbippool", "lbippools"],
        categories: &["cilium"],
        annotations: Value::Null,
        versions: vec![of("v2", true), of("v2alpha1", false)],
    }
}
