//! The definitions of the kinds of policies and services, made from one description of what they have in common.

mod services;

use serde_json::{Map, Value, json};

/// What holds for a definition as a whole.
struct Kind {
    about: &'static str,
    group: &'static str,
    scope: &'static str,
    kind: &'static str,
    plural: &'static str,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    annotations: Value,
    versions: Vec<Value>,
}

/// File and text of each.
pub fn manifests() -> Vec<(String, String)> {
    let policies = [cilium_policy(true), cilium_policy(false), cidr_group(), cluster_policy()];
    let services = [services::local_redirect(), services::ip_pool()];
    policies.into_iter().chain(services).map(manifest).collect()
}

fn manifest(kind: Kind) -> (String, String) {
    let Kind { about, group, scope, kind, plural, short_names, categories, annotations, versions } = kind;
    let mut metadata = json!({"name": format!("{plural}.{group}")});
    if !annotations.is_null() {
        metadata["annotations"] = annotations;
    }
    let mut names = json!({"kind": kind, "listKind": format!("{kind}List"), "plural": plural,
        "singular": kind.to_lowercase()});
    for (name, list) in [("shortNames", short_names), ("categories", categories)] {
        if !list.is_empty() {
            names[name] = json!(list);
        }
    }
    let object = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {"group": group, "names": names, "scope": scope, "versions": versions},
    });
    let body = serde_saphyr::to_string(&object).expect("plain data");
    (format!("{plural}.yaml"), format!("# {about} Generated: see crates/operator/tests/suite/crds.\n{body}"))
}

fn version(name: &str, columns: Value, about: &str, parts: Vec<(&str, Value)>, required: &[&str]) -> Value {
    let mut all = vec![("apiVersion", json!({"type": "string"})), ("kind", json!({"type": "string"}))];
    all.push(("metadata", json!({"type": "object"})));
    let has_status = parts.iter().any(|(name, _)| *name == "status");
    all.extend(parts);
    let schema = object(about, all, required);
    let mut version = json!({"name": name, "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    if has_status {
        version["subresources"] = json!({"status": {}});
    }
    if !columns.is_null() {
        version["additionalPrinterColumns"] = columns;
    }
    version
}

fn column(name: &str, kind: &str, path: &str) -> Value {
    json!({"name": name, "type": kind, "jsonPath": path})
}

fn condition_column(kind: &str) -> Value {
    column(kind, "string", &format!(".status.conditions[?(@.type=='{kind}')].status"))
}

fn age() -> Value {
    column("Age", "date", ".metadata.creationTimestamp")
}

// ---- pieces of schemas ----

fn text(about: &str) -> Value {
    json!({"type": "string", "description": about})
}

fn one_of(about: &str, values: &[&str]) -> Value {
    json!({"type": "string", "description": about, "enum": values})
}

fn flag(about: &str) -> Value {
    json!({"type": "boolean", "description": about})
}

fn whole(about: &str, minimum: u32, maximum: u32) -> Value {
    json!({"type": "integer", "format": "int32", "description": about, "minimum": minimum, "maximum": maximum})
}

fn list(about: &str, items: Value) -> Value {
    json!({"type": "array", "description": about, "items": items})
}

fn short_list(about: &str, max: u32, items: Value) -> Value {
    json!({"type": "array", "description": about, "items": items, "maxItems": max})
}

fn object(about: &str, properties: Vec<(&str, Value)>, required: &[&str]) -> Value {
    let properties: Map<String, Value> =
        properties.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    let mut schema = json!({"type": "object", "properties": properties});
    if !about.is_empty() {
        schema["description"] = json!(about);
    }
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

/// Something that is kept as it was written.
fn open(about: &str) -> Value {
    json!({"type": "object", "description": about, "x-kubernetes-preserve-unknown-fields": true})
}

fn selector(about: &str) -> Value {
    let values = json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"});
    let operator =
        one_of("What the key and the values must be to each other.", &["In", "NotIn", "Exists", "DoesNotExist"]);
    let expression = object(
        "",
        vec![("key", text("Key of the label.")), ("operator", operator), ("values", values)],
        &["key", "operator"],
    );
    let mut expressions = list("Conditions, of which all must hold.", expression);
    expressions["x-kubernetes-list-type"] = json!("atomic");
    let labels = json!({"type": "object", "description": "Labels, all of which must be there.",
        "additionalProperties": {"type": "string", "maxLength": 63}});
    let mut schema = object(about, vec![("matchLabels", labels), ("matchExpressions", expressions)], &[]);
    schema["x-kubernetes-map-type"] = json!("atomic");
    schema
}

fn conditions(kind: &str) -> Value {
    conditions_of("What is true of the policy now.", kind)
}

fn conditions_of(about: &str, kind: &str) -> Value {
    let condition = object(
        "",
        vec![
            ("type", text(kind)),
            ("status", one_of("Whether it holds.", &["True", "False", "Unknown"])),
            ("reason", text("One word for a program.")),
            ("message", text("For people: the fields that cannot be used, and what was expected.")),
            ("lastTransitionTime", json!({"type": "string", "format": "date-time"})),
            ("observedGeneration", json!({"type": "integer", "format": "int64"})),
        ],
        &["type", "status"],
    );
    let mut conditions = list(about, condition);
    conditions["x-kubernetes-list-type"] = json!("map");
    conditions["x-kubernetes-list-map-keys"] = json!(["type"]);
    object("Written by the operator.", vec![("conditions", conditions)], &[])
}

// ---- cilium.io ----

fn cilium_policy(namespaced: bool) -> Kind {
    let spec = cilium_spec(namespaced);
    let parts = vec![
        ("spec", spec.clone()),
        ("specs", list("More rules, each on its own.", spec)),
        ("status", conditions("Valid: whether the policy can be enforced as it is written.")),
    ];
    let (kind, plural, about): (_, _, &'static str) = if namespaced {
        ("CiliumNetworkPolicy", "ciliumnetworkpolicies", "Rules for pods of one namespace.")
    } else {
        (
            "CiliumClusterwideNetworkPolicy",
            "ciliumclusterwidenetworkpolicies",
            "Rules for pods of all namespaces, or for nodes.",
        )
    };
    let columns =
        if namespaced { json!([age(), condition_column("Valid")]) } else { json!([condition_column("Valid")]) };
    Kind {
        about,
        group: "cilium.io",
        scope: if namespaced { "Namespaced" } else { "Cluster" },
        kind,
        plural,
        short_names: if namespaced { &["cnp", "ciliumnp"] } else { &["ccnp"] },
        categories: &["cilium", "ciliumpolicy"],
        annotations: Value::Null,
        versions: vec![version("v2", columns, about, parts, &["metadata"])],
    }
}

fn cilium_spec(namespaced: bool) -> Value {
    let label = object(
        "",
        vec![("key", text("Key.")), ("value", text("Value.")), ("source", text("Where the label comes from."))],
        &["key"],
    );
    let default_deny = object(
        "Whether the selected endpoints drop what no rule allows. Unset: yes, in each direction that has rules.",
        vec![("ingress", flag("For packets to them.")), ("egress", flag("For packets from them."))],
        &[],
    );
    let mut log = text("Copied to flow records; at most 32 printable characters.");
    log["maxLength"] = json!(32);
    let mut parts = vec![
        ("endpointSelector", selector("The pods that the rules apply to; {} is all.")),
        ("ingress", list("What may come in. An element that is {} allows nothing.", rule(true, false))),
        ("ingressDeny", list("What may not come in, whatever is allowed.", rule(true, true))),
        ("egress", list("What may go out. An element that is {} allows nothing.", rule(false, false))),
        ("egressDeny", list("What may not go out, whatever is allowed.", rule(false, true))),
        ("enableDefaultDeny", default_deny),
        ("labels", list("Free labels of the rule.", label)),
        ("description", text("Free text.")),
        ("log", object("What flow records say of the rule.", vec![("value", log)], &[])),
    ];
    if !namespaced {
        parts.push(("nodeSelector", selector("The nodes that the rules apply to, instead of pods: a host firewall.")));
    }
    object("Rules for some endpoints.", parts, &[])
}

fn rule(ingress: bool, deny: bool) -> Value {
    let field = |name: &'static str| -> &'static str {
        match (ingress, name) {
            (true, "Endpoints") => "fromEndpoints",
            (false, "Endpoints") => "toEndpoints",
            (true, "CIDR") => "fromCIDR",
            (false, "CIDR") => "toCIDR",
            (true, "CIDRSet") => "fromCIDRSet",
            (false, "CIDRSet") => "toCIDRSet",
            (true, "Entities") => "fromEntities",
            (false, "Entities") => "toEntities",
            (true, "Nodes") => "fromNodes",
            (false, "Nodes") => "toNodes",
            (true, "Groups") => "fromGroups",
            (false, "Groups") => "toGroups",
            (true, _) => "fromRequires",
            (false, _) => "toRequires",
        }
    };
    let set = object(
        "",
        vec![
            ("cidr", text("A prefix.")),
            ("except", list("Prefixes inside it that are left out.", json!({"type": "string"}))),
            ("cidrGroupRef", text("The name of a CiliumCIDRGroup, instead of a prefix.")),
            ("cidrGroupSelector", selector("CiliumCIDRGroups by their labels, instead of a prefix.")),
        ],
        &[],
    );
    let entities = one_of(
        "A group of peers.",
        &[
            "all",
            "world",
            "world-ipv4",
            "world-ipv6",
            "cluster",
            "host",
            "init",
            "ingress",
            "unmanaged",
            "remote-node",
            "health",
            "none",
            "kube-apiserver",
        ],
    );
    let mut parts = vec![
        (
            field("Endpoints"),
            list("Pods by their labels; {} is all, of the policy's namespace if it has one.", selector("")),
        ),
        (field("CIDR"), list("Prefixes or addresses outside the cluster.", json!({"type": "string"}))),
        (field("CIDRSet"), list("Prefixes with exceptions, or groups of prefixes.", set)),
        (field("Entities"), list("Groups of peers that have names.", entities)),
        (field("Nodes"), list("Nodes by their labels.", selector(""))),
        (field("Groups"), list("Not supported yet.", open("A group of a cloud provider."))),
        (field("Requires"), list("No longer part of the API: such a policy is refused.", open("A requirement."))),
        ("toPorts", list("Ports; absent: all.", ports(ingress, deny))),
        ("icmps", list("Types of ICMP messages, instead of ports.", icmp())),
    ];
    if !ingress {
        parts.push(("toServices", list("What is behind Services.", service())));
    }
    if !deny {
        let mode = one_of("Only disabled is supported yet.", &["disabled", "required", "test-always-fail"]);
        parts.push(("authentication", object("Mutual authentication.", vec![("mode", mode)], &["mode"])));
    }
    if !ingress && !deny {
        let name =
            object("", vec![("matchName", text("A name.")), ("matchPattern", text("A name with * in it."))], &[]);
        parts.push(("toFQDNs", list("Not supported yet.", name)));
    }
    object("Any of the peers (one kind of them), on any of the ports.", parts, &[])
}

fn ports(ingress: bool, deny: bool) -> Value {
    let protocol = one_of(
        "ANY, the default, is TCP, UDP and SCTP.",
        &["TCP", "UDP", "SCTP", "ICMP", "ICMPV6", "ANY", "VRRP", "IGMP", "GRE", "IPIP", "IPV6", "ESP", "AH"],
    );
    let port = object(
        "",
        vec![
            ("port", text("A number, or the name of a container's port; \"0\" is all.")),
            ("endPort", whole("Last port of a range that begins with port.", 0, 65_535)),
            ("protocol", protocol),
        ],
        &[],
    );
    let mut parts = vec![("ports", short_list("Ports of protocols.", 40, port))];
    if !deny {
        let rules = |name| list("Not supported yet.", open(name));
        let l7 = vec![
            ("http", rules("A request.")),
            ("dns", rules("A name.")),
            ("kafka", rules("A request.")),
            ("l7", rules("A request.")),
            ("l7proto", text("Not supported yet.")),
        ];
        parts.extend([
            ("rules", object("Rules that need a proxy.", l7, &[])),
            ("terminatingTLS", open("Not supported yet.")),
            ("originatingTLS", open("Not supported yet.")),
            ("serverNames", list("Not supported yet.", json!({"type": "string"}))),
        ]);
        if !ingress {
            parts.push(("listener", open("Not supported yet.")));
        }
    }
    object("", parts, &[])
}

fn icmp() -> Value {
    let family = one_of("IPv4, the default, or IPv6.", &["IPv4", "IPv6"]);
    let kind = json!({"x-kubernetes-int-or-string": true,
        "description": "A number from 0 to 255, or a name such as EchoRequest or NeighborSolicitation."});
    let field = object("", vec![("family", family), ("type", kind)], &["type"]);
    object("", vec![("fields", short_list("Types of messages.", 40, field))], &[])
}

fn service() -> Value {
    let namespace = || text("The Service's namespace.");
    let by_name = vec![("serviceName", text("The Service's name.")), ("namespace", namespace())];
    let by_labels = vec![("selector", selector("On the Service's own labels.")), ("namespace", namespace())];
    object(
        "",
        vec![
            ("k8sService", object("One Service, by its name.", by_name, &[])),
            ("k8sServiceSelector", object("Services by their labels.", by_labels, &["selector"])),
        ],
        &[],
    )
}

fn cidr_group() -> Kind {
    let about = "Prefixes that policies refer to by the name or labels of this object.";
    let of = |name: &str, storage: bool| {
        let cidrs = list("Prefixes or addresses outside the cluster.", json!({"type": "string"}));
        let spec = object("", vec![("externalCIDRs", cidrs)], &["externalCIDRs"]);
        let mut version = version(name, Value::Null, about, vec![("spec", spec)], &["spec"]);
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
        kind: "CiliumCIDRGroup",
        plural: "ciliumcidrgroups",
        short_names: &["ccg"],
        categories: &["cilium"],
        annotations: Value::Null,
        versions: vec![of("v2", true), of("v2alpha1", false)],
    }
}

// ---- policy.networking.k8s.io ----

fn cluster_policy() -> Kind {
    let about = "Rules of the cluster's administrator, before or after all other policies.";
    let one = |mut schema: Value| {
        schema["minProperties"] = json!(1);
        schema["maxProperties"] = json!(1);
        schema
    };
    let pods = || {
        let parts = vec![
            ("namespaceSelector", selector("Namespaces by their labels; absent: all.")),
            ("podSelector", selector("Pods by their labels; {} is all.")),
        ];
        object("Pods of namespaces.", parts, &["podSelector"])
    };
    let namespaces = || selector("All pods of namespaces, by the labels of these; {} is all.");
    let peers = |egress: bool| {
        let mut parts = vec![("namespaces", namespaces()), ("pods", pods())];
        if egress {
            let strings = |about: &str| {
                let mut list = short_list(about, 25, json!({"type": "string"}));
                list["minItems"] = json!(1);
                list["x-kubernetes-list-type"] = json!("set");
                list
            };
            parts.push(("nodes", selector("Nodes by their labels.")));
            parts.push(("networks", strings("Prefixes; addresses of the cluster count as well.")));
            parts.push(("domainNames", strings("Not supported yet.")));
        }
        let mut list = short_list("Peers, of which any may match.", 25, one(object("", parts, &[])));
        list["minItems"] = json!(1);
        list
    };
    let port = || {
        let number = |about: &str| whole(about, 1, 65_535);
        let range = object(
            "From start to end.",
            vec![("start", number("First.")), ("end", number("Last."))],
            &["start", "end"],
        );
        let port = one(object("", vec![("number", number("One port.")), ("range", range)], &[]));
        object("", vec![("destinationPort", port)], &["destinationPort"])
    };
    let protocols = || {
        let parts = vec![
            ("tcp", port()),
            ("udp", port()),
            ("sctp", port()),
            ("destinationNamedPort", text("The name of a port of the receiving pod.")),
        ];
        let mut list = short_list("Ports of protocols; absent: everything.", 25, one(object("", parts, &[])));
        list["minItems"] = json!(1);
        list
    };
    let rules = |egress: bool| {
        let field = if egress { "to" } else { "from" };
        let mut name = text("For people.");
        name["maxLength"] = json!(100);
        let action = one_of("Pass leaves the decision to the next tier.", &["Accept", "Deny", "Pass"]);
        let parts = vec![("name", name), ("action", action), (field, peers(egress)), ("protocols", protocols())];
        let about = if egress { "Rules for packets from the subjects." } else { "Rules for packets to the subjects." };
        let about = format!("{about} The first that matches decides.");
        short_list(&about, 25, object("", parts, &["action", field]))
    };
    let subject =
        one(object("The pods that the rules apply to.", vec![("namespaces", namespaces()), ("pods", pods())], &[]));
    let spec = object(
        "",
        vec![
            ("tier", one_of("Admin: before all other policies. Baseline: after them.", &["Admin", "Baseline"])),
            ("priority", whole("Lower comes first within the tier.", 0, 1000)),
            ("subject", subject),
            ("ingress", rules(false)),
            ("egress", rules(true)),
        ],
        &["tier", "priority", "subject"],
    );
    let columns = json!([
        column("Tier", "string", ".spec.tier"),
        column("Priority", "string", ".spec.priority"),
        condition_column("Accepted"),
        age(),
    ]);
    let status = conditions("Accepted: whether the policy can be enforced as it is written.");
    Kind {
        about,
        group: "policy.networking.k8s.io",
        scope: "Cluster",
        kind: "ClusterNetworkPolicy",
        plural: "clusternetworkpolicies",
        // Its own short name is cnp, which is CiliumNetworkPolicy's as well.
        short_names: &[],
        categories: &[],
        annotations: json!({
            "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/network-policy-api/pull/347",
        }),
        versions: vec![version(
            "v1alpha2",
            columns,
            about,
            vec![("spec", spec), ("status", status)],
            &["metadata", "spec"],
        )],
    }
}
