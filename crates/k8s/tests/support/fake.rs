//! An API server in memory, over kube's own client but without a network: objects, versions, conditional writes,
//! watches, and the faults that real ones show. It validates nothing.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use tokio::sync::watch;

/// (group and version and plural, namespace, name)
type Key = (String, String, String);

#[derive(Clone)]
struct Logged {
    version: u64,
    kind: &'static str,
    key: Key,
    object: Value,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    log: Vec<Logged>,
    /// Watches from before this version are refused.
    compacted: u64,
    /// Changes end all watches.
    epoch: u64,
    /// Codes with which the next requests are refused.
    refusals: VecDeque<u16>,
    /// Collections that the server does not know.
    unknown: BTreeSet<String>,
    /// Collections that discovery has, whatever `unknown` says.
    discovered: BTreeSet<String>,
    /// Everything but what is known is 404, discovery too: as a proxy answers, or a server that starts.
    starting: bool,
    /// Collections that are forbidden.
    forbidden: BTreeSet<String>,
    /// Watches that were opened.
    opened: u64,
    /// Those up to this number are neither fed nor ended.
    frozen: u64,
    /// Collections whose status is written apart from the object.
    status_apart: BTreeSet<String>,
    /// Every event is sent twice.
    duplicate: bool,
    /// `VERB path` of all successful writes.
    writes: Vec<String>,
    lists: usize,
    /// Group, resource and verb of all requests, as roles name them.
    asked: BTreeSet<(String, String, &'static str)>,
}

/// The server.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

impl Fake {
    pub fn new() -> Self {
        let state = State { version: 100, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), changed: watch::Sender::new(0) }
    }

    pub fn client(&self) -> weft_k8s::Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.serve(request).await) }
        });
        weft_k8s::Client::over(kube::Client::new(service, "default"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the lock")
    }

    fn tick(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Creates or replaces an object, whatever its version.
    pub fn put(&self, collection: &str, object: Value) -> Value {
        let object = self.lock().put(collection, object);
        self.tick();
        object
    }

    pub fn remove(&self, collection: &str, namespace: &str, name: &str) {
        self.lock().remove(&key(collection, namespace, name));
        self.tick();
    }

    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&key(collection, namespace, name)).cloned()
    }

    pub fn all(&self, collection: &str) -> Vec<Value> {
        let state = self.lock();
        let of = state.objects.iter().filter(|((plural, ..), _)| plural == collection);
        of.map(|(_, object)| object.clone()).collect()
    }

    /// Ends all watches.
    pub fn hang_up(&self) {
        self.lock().epoch += 1;
        self.tick();
    }

    /// Forgets all versions before now: watches must list again. Changes made by `meanwhile` are in no log.
    pub fn compact(&self, meanwhile: impl FnOnce(&Self)) {
        self.lock().epoch += 1;
        meanwhile(self);
        let mut state = self.lock();
        state.version += 1;
        state.compacted = state.version;
        state.log.clear();
        drop(state);
        self.tick();
    }

    /// Sends an event out of turn to all watches.
    pub fn inject(&self, kind: &'static str, collection: &str, object: Value) {
        let mut state = self.lock();
        let version = state.version + 1;
        state.version = version;
        let (namespace, name) = names(&object);
        state.log.push(Logged { version, kind, key: key(collection, &namespace, &name), object });
        drop(state);
        self.tick();
    }

    pub fn refuse(&self, codes: &[u16]) {
        self.lock().refusals.extend(codes);
    }

    /// Whether the server knows a collection; it does, unless told.
    pub fn set_known(&self, collection: &str, known: bool) {
        let mut state = self.lock();
        if known {
            state.unknown.remove(collection)
        } else {
            state.unknown.insert(collection.to_owned())
        };
    }

    /// Whether discovery has a collection that the server does not know.
    pub fn set_discovered(&self, collection: &str, discovered: bool) {
        let mut state = self.lock();
        if discovered {
            state.discovered.insert(collection.to_owned())
        } else {
            state.discovered.remove(collection)
        };
    }

    /// Whether the discovery documents are 404.
    pub fn set_starting(&self, starting: bool) {
        self.lock().starting = starting;
    }

    /// Whether nobody may list or watch a collection.
    pub fn set_forbidden(&self, collection: &str, forbidden: bool) {
        let mut state = self.lock();
        if forbidden {
            state.forbidden.insert(collection.to_owned())
        } else {
            state.forbidden.remove(collection)
        };
    }

    /// Open watches are silent from here on, as when the network drops their packets.
    pub fn freeze(&self) {
        let mut state = self.lock();
        state.frozen = state.opened;
    }

    /// From here on the status of these objects is written on its own.
    pub fn keep_status_apart(&self, collection: &str) {
        self.lock().status_apart.insert(collection.to_owned());
    }

    pub fn duplicate(&self) {
        self.lock().duplicate = true;
    }

    pub fn writes(&self) -> Vec<String> {
        self.lock().writes.clone()
    }

    /// Group, resource and verb of all requests so far.
    pub fn asked(&self) -> BTreeSet<(String, String, &'static str)> {
        self.lock().asked.clone()
    }

    /// The same, as the ClusterRole and the Roles of that name in `deploy/rbac.yaml` grant it.
    pub fn granted(role: &str) -> BTreeSet<(String, String, &'static str)> {
        const VERBS: [&str; 7] = ["get", "list", "watch", "create", "update", "patch", "delete"];
        let text = include_str!("../../../../deploy/rbac.yaml");
        let mut granted = BTreeSet::new();
        let objects = text.split("\n---\n").map(|text| serde_saphyr::from_str::<Value>(text).expect("YAML"));
        for object in objects.filter(|object| object["metadata"]["name"] == role) {
            for rule in object["rules"].as_array().into_iter().flatten() {
                let list = |name: &str| {
                    let items = rule[name].as_array().expect("a list").iter();
                    items.map(|item| item.as_str().expect("text").to_owned()).collect::<Vec<_>>()
                };
                for (group, resource) in
                    list("apiGroups").iter().flat_map(|g| list("resources").into_iter().map(move |r| (g.clone(), r)))
                {
                    for verb in list("verbs") {
                        let verb = VERBS.into_iter().find(|known| *known == verb).expect("a verb");
                        granted.insert((group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
        granted
    }

    pub fn lists(&self) -> usize {
        self.lock().lists
    }

    /// Waits until `holds`, at most ten seconds.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !holds(self) {
                let _ = tokio::time::timeout(std::time::Duration::from_millis(200), changed.changed()).await;
            }
        };
        let within = tokio::time::timeout(std::time::Duration::from_secs(30), wait).await;
        within.unwrap_or_else(|_| panic!("{what}: not so after 30 s; objects: {:#?}", self.lock().objects));
    }

    async fn serve(&self, request: Request<Body>) -> Answer {
        let (head, body) = request.into_parts();
        let query: HashMap<String, String> = head.uri.query().map(parse_query).unwrap_or_default();
        if let Some(answer) = self.discovery(head.uri.path()) {
            return answer;
        }
        let (plural, namespace, name, sub) = split(head.uri.path());
        let watching = query.contains_key("watch");
        self.lock().asked.insert(asked(&head.method, &plural, &name, &sub, watching));
        if let Some(code) = self.lock().refusals.pop_front() {
            return status(code, "Injected", "refused by the test");
        }
        if self.lock().forbidden.contains(&plural) {
            self.lock().lists += 1;
            self.tick();
            return status(403, "Forbidden", &format!("User \"agent\" cannot list resource \"{plural}\""));
        }
        if self.lock().unknown.contains(&plural) {
            self.lock().lists += 1;
            self.tick();
            return status(404, "NotFound", "the server could not find the requested resource");
        }
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if watching {
            return self.watch(plural, namespace, &query);
        }
        let content_type = head.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("");
        let answer = self.lock().handle(&head.method, &plural, &namespace, &name, &sub, &query, content_type, body);
        if head.method != Method::GET {
            if answer.status().is_success() {
                self.lock().writes.push(format!("{} {}", head.method, head.uri.path()));
            }
            self.tick();
        }
        answer
    }

    /// `/apis` and `/apis/GROUP/VERSION`; `None` for other paths.
    fn discovery(&self, path: &str) -> Option<Answer> {
        static KINDS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
            let manifests = weft_k8s::crd::MANIFESTS.into_iter();
            let manifests = manifests.map(|(file, text)| weft_k8s::crd::parse(file, text).expect("YAML"));
            let served = manifests.flat_map(|crd| {
                let group = crd["spec"]["group"].as_str().expect("text").to_owned();
                let plural = crd["spec"]["names"]["plural"].as_str().expect("text").to_owned();
                let versions = crd["spec"]["versions"].as_array().expect("a list").clone().into_iter();
                versions.map(move |v| format!("apis/{group}/{}/{plural}", v["name"].as_str().expect("text")))
            });
            served.chain(["apis/apiextensions.k8s.io/v1/customresourcedefinitions".to_owned()]).collect()
        });
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        if parts[0] != "apis" || !matches!(parts.len(), 1 | 3) {
            return None;
        }
        let state = self.lock();
        if state.starting {
            return Some(status(404, "NotFound", "404 page not found"));
        }
        let known = KINDS.iter().filter(|kind| !state.unknown.contains(*kind)).chain(&state.discovered);
        let kinds: BTreeSet<Vec<&str>> = known.map(|kind| kind.split('/').collect()).collect();
        if parts.len() == 3 {
            let plurals: Vec<&str> = kinds.iter().filter(|kind| kind[..3] == parts[..]).map(|kind| kind[3]).collect();
            if plurals.is_empty() {
                return Some(status(404, "NotFound", "404 page not found"));
            }
            let resources: Vec<Value> = plurals.iter().map(|plural| json!({"name": plural})).collect();
            return Some(answer(200, &json!({"kind": "APIResourceList", "resources": resources})));
        }
        let versions: BTreeSet<(&str, &str)> = kinds.iter().map(|kind| (kind[1], kind[2])).collect();
        let groups = versions.into_iter().map(|(g, v)| json!({"name": g, "versions": [{"version": v}]}));
        Some(answer(200, &json!({"kind": "APIGroupList", "groups": groups.collect::<Vec<_>>()})))
    }

    fn watch(&self, plural: String, namespace: String, query: &HashMap<String, String>) -> Answer {
        let from: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        if from < self.lock().compacted {
            return status(410, "Expired", "too old resource version");
        }
        let (epoch, number) = {
            let mut state = self.lock();
            state.opened += 1;
            (state.epoch, state.opened)
        };
        let field = query.get("fieldSelector").cloned();
        let start = (self.clone(), self.changed.subscribe(), from, VecDeque::<Value>::new());
        let stream = futures::stream::unfold(start, move |(fake, mut changed, mut from, mut queue)| {
            let (plural, namespace, field) = (plural.clone(), namespace.clone(), field.clone());
            async move {
                loop {
                    if let Some(event) = queue.pop_front() {
                        let frame = Frame::data(Bytes::from(format!("{event}\n")));
                        return Some((Ok::<_, Infallible>(frame), (fake, changed, from, queue)));
                    }
                    changed.borrow_and_update();
                    if number <= fake.lock().frozen {
                        std::future::pending::<()>().await;
                    }
                    let over = {
                        let state = fake.lock();
                        let times = 1 + usize::from(state.duplicate);
                        for logged in state.log.iter().filter(|logged| logged.version > from) {
                            let mine = logged.key.0 == plural && (namespace.is_empty() || logged.key.1 == namespace);
                            if mine && selected(field.as_deref(), None, &logged.object) {
                                let event = json!({"type": logged.kind, "object": logged.object});
                                queue.extend(std::iter::repeat_n(event, times));
                            }
                        }
                        from = from.max(state.version);
                        state.epoch != epoch
                    };
                    if queue.is_empty() && (over || changed.changed().await.is_err()) {
                        return None;
                    }
                }
            }
        });
        Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Box::pin(stream))))))
    }
}

type FrameStream = std::pin::Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

/// A body must be `Sync`; only one reader ever polls it.
struct SyncStream(Mutex<FrameStream>);

impl futures::Stream for SyncStream {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.get_mut().0.get_mut().expect("never poisoned").as_mut().poll_next(context)
    }
}

impl State {
    fn put(&mut self, collection: &str, mut object: Value) -> Value {
        let (namespace, name) = names(&object);
        let key = key(collection, &namespace, &name);
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let uid = self.objects.get(&key).map(|held| held["metadata"]["uid"].clone());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = uid.clone().unwrap_or_else(|| json!(format!("uid-{version}")));
        }
        let kind = if uid.is_some() { "MODIFIED" } else { "ADDED" };
        self.objects.insert(key.clone(), object.clone());
        self.log.push(Logged { version, kind, key, object: object.clone() });
        object
    }

    fn remove(&mut self, key: &Key) -> Option<Value> {
        let mut object = self.objects.remove(key)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push(Logged { version: self.version, kind: "DELETED", key: key.clone(), object: object.clone() });
        Some(object)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a request")]
    fn handle(
        &mut self,
        method: &Method,
        plural: &str,
        namespace: &str,
        name: &str,
        sub: &str,
        query: &HashMap<String, String>,
        content_type: &str,
        body: Value,
    ) -> Answer {
        let key = key(plural, namespace, name);
        let held = self.objects.get(&key).cloned();
        match (method.as_str(), name.is_empty(), held) {
            ("GET", true, _) => self.list(plural, namespace, query),
            ("GET", false, Some(object)) => answer(200, &object),
            ("POST", true, _) => {
                let mut body = body;
                if !namespace.is_empty() {
                    body["metadata"]["namespace"] = json!(namespace);
                }
                if self.status_apart.contains(plural) {
                    body.as_object_mut().map(|body| body.remove("status"));
                }
                let (namespace, name) = names(&body);
                if self.objects.contains_key(&(plural.to_owned(), namespace, name)) {
                    return status(409, "AlreadyExists", "exists");
                }
                answer(201, &self.put(plural, body))
            }
            ("PUT", false, Some(object)) => {
                let wanted = &body["metadata"]["resourceVersion"];
                if !wanted.is_null() && *wanted != object["metadata"]["resourceVersion"] {
                    return status(409, "Conflict", "changed meanwhile");
                }
                answer(200, &self.put(plural, body))
            }
            ("PATCH", false, Some(object)) => {
                let wanted = &body["metadata"]["resourceVersion"];
                if !wanted.is_null() && *wanted != object["metadata"]["resourceVersion"] {
                    return status(409, "Conflict", "changed meanwhile");
                }
                let mut patched = object.clone();
                merge(&mut patched, &body, content_type.contains("strategic"));
                if sub == "status" {
                    let status = patched["status"].take();
                    patched = object;
                    patched["status"] = status;
                } else if self.status_apart.contains(plural) {
                    patched["status"] = object["status"].clone();
                }
                answer(200, &self.put(plural, patched))
            }
            ("DELETE", false, Some(object)) => {
                let wanted = &body["preconditions"]["resourceVersion"];
                if !wanted.is_null() && *wanted != object["metadata"]["resourceVersion"] {
                    return status(409, "Conflict", "precondition failed");
                }
                let wanted = &body["preconditions"]["uid"];
                if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
                    return status(409, "Conflict", "precondition failed: UID");
                }
                self.remove(&key);
                answer(200, &json!({"kind": "Status", "status": "Success"}))
            }
            _ => status(404, "NotFound", &format!("{plural} {namespace}/{name} not found")),
        }
    }

    fn list(&mut self, plural: &str, namespace: &str, query: &HashMap<String, String>) -> Answer {
        self.lists += 1;
        let of = |key: &Key| key.0 == plural && (namespace.is_empty() || key.1 == namespace);
        let (field, label) = (query.get("fieldSelector"), query.get("labelSelector"));
        let fits = |object: &Value| selected(field.map(String::as_str), label.map(String::as_str), object);
        let all: Vec<&Value> =
            self.objects.iter().filter(|(key, object)| of(key) && fits(object)).map(|(_, o)| o).collect();
        let from: usize = query.get("continue").and_then(|token| token.parse().ok()).unwrap_or(0);
        // Small pages, whatever is asked for, so that every test pages.
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX).min(3);
        let page: Vec<&Value> = all.iter().skip(from).take(limit).copied().collect();
        let more = (from + page.len() < all.len()).then(|| (from + page.len()).to_string());
        let metadata = json!({"resourceVersion": self.version.to_string(), "continue": more.unwrap_or_default()});
        answer(200, &json!({"kind": "List", "metadata": metadata, "items": page}))
    }
}

fn merge(target: &mut Value, patch: &Value, strategic: bool) {
    let (Value::Object(into), Value::Object(from)) = (&mut *target, patch) else {
        *target = patch.clone();
        return;
    };
    for (name, value) in from {
        match value {
            Value::Null => drop(into.remove(name)),
            Value::Array(items) if strategic && name == "conditions" => {
                let held = into.entry(name).or_insert_with(|| json!([]));
                for item in items {
                    let list = held.as_array_mut().expect("conditions are a list");
                    list.retain(|held| held["type"] != item["type"]);
                    list.push(item.clone());
                }
            }
            other => merge(into.entry(name).or_insert(Value::Null), other, strategic),
        }
    }
}

fn key(collection: &str, namespace: &str, name: &str) -> Key {
    (collection.to_owned(), namespace.to_owned(), name.to_owned())
}

fn names(object: &Value) -> (String, String) {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// Collection, namespace, name, subresource.
fn split(path: &str) -> (String, String, String, String) {
    let mut parts: VecDeque<&str> = path.trim_matches('/').split('/').collect();
    let prefix = if parts[0] == "api" { 2 } else { 3 };
    let group: Vec<&str> = parts.drain(..prefix).collect();
    let mut namespace = String::new();
    if parts[0] == "namespaces" && parts.len() >= 3 {
        namespace = parts[1].to_owned();
        parts.drain(..2);
    }
    let part = |n: usize| parts.get(n).copied().unwrap_or_default().to_owned();
    (format!("{}/{}", group.join("/"), part(0)), namespace, part(1), part(2))
}

fn asked(method: &Method, plural: &str, name: &str, sub: &str, watching: bool) -> (String, String, &'static str) {
    let parts: Vec<&str> = plural.split('/').collect();
    let group = if parts[0] == "api" { "" } else { parts[1] };
    let resource = parts[parts.len() - 1];
    let resource = if sub.is_empty() { resource.to_owned() } else { format!("{resource}/{sub}") };
    let verb = match (method.as_str(), name.is_empty()) {
        ("GET", true) if watching => "watch",
        ("GET", true) => "list",
        ("GET", false) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        _ => "delete",
    };
    (group.to_owned(), resource, verb)
}

fn selected(field: Option<&str>, label: Option<&str>, object: &Value) -> bool {
    let field = field.and_then(|field| field.strip_prefix("spec.nodeName="));
    let label = label.and_then(|label| label.split_once('='));
    field.is_none_or(|node| object["spec"]["nodeName"] == node)
        && label.is_none_or(|(key, value)| object["metadata"]["labels"][key] == value)
}

fn parse_query(query: &str) -> HashMap<String, String> {
    let decode = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            if byte == b'%' {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                bytes.push(u8::from_str_radix(&hex, 16).expect("two hexadecimal digits"));
            } else {
                bytes.push(byte);
            }
        }
        String::from_utf8(bytes).expect("text")
    };
    query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (decode(k), decode(v))).collect()
}

fn answer(code: u16, object: &Value) -> Answer {
    let mut answer = Response::new(BodyExt::boxed(Full::new(Bytes::from(object.to_string()))));
    *answer.status_mut() = StatusCode::from_u16(code).expect("a code");
    answer
}

fn status(code: u16, reason: &str, message: &str) -> Answer {
    let object = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    answer(code, &object)
}
