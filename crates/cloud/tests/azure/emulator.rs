//! Resource Manager and the metadata service, as far as they are used: interfaces of machines and of scale set instances,
//! ETags, long-running operations, throttling, full subnets, and whatever a test wants to go wrong.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

pub const GROUP: &str = "/subscriptions/0000-1111/resourceGroups/rg/providers";
const SUBNET: u32 = 0x0af1_0000;
const SUBNET_V6: u128 = 0xfd45 << 112;

/// What happens to the next request to Resource Manager, in the place of the right thing.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// The right answer, so much later.
    Slow(Duration),
    /// It is carried out, and the connection is cut.
    Cut,
    /// Somebody else writes just before.
    Meddle,
    /// The long-running operation that it begins fails at its end, with this code.
    FailLater(&'static str),
    /// Where the operation is to be looked at is said by `Location`, as older interfaces do it, and the first look at it
    /// is throttled.
    ByLocation,
}

#[derive(Default)]
pub struct World {
    /// By id, in lower case: the resource.
    resources: BTreeMap<String, Value>,
    etag: u64,
    /// Addresses that are taken: IPv6, and the offset in the subnet.
    taken: BTreeSet<(bool, u32)>,
    /// First and last offset that the subnet has.
    room: (u32, u32),
    /// Operations: looks left until they end, what they end with, whether they answer by their status code.
    operations: Vec<(u32, Option<&'static str>, bool)>,
    pub faults: VecDeque<Fault>,
    pub puts: usize,
    pub requests: usize,
    pub tokens: usize,
    /// Looks until a write is done; 0: at once.
    pub looks: u32,
    token_good: usize,
    /// How long tokens last, in seconds.
    pub token_lasts: u64,
    /// Answers of the metadata service in the place of a token.
    pub token_faults: VecDeque<(u16, Option<&'static str>)>,
}

#[derive(Clone)]
pub struct Emulator {
    pub world: Arc<Mutex<World>>,
    pub address: String,
}

fn error(status: u16, code: &str) -> Response<Full<Bytes>> {
    answer(status, &json!({"error": {"code": code, "message": format!("emulated {code}")}}))
}

fn answer(status: u16, body: &Value) -> Response<Full<Bytes>> {
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    Response::builder().status(status).body(Full::new(body)).unwrap()
}

impl Emulator {
    /// With a machine `vm1`, a scale set instance `set/0`, and a subnet with so many free addresses.
    pub async fn start(free: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let mut world = World { room: (10, 9 + free), token_good: 1, token_lasts: 86_400, ..World::default() };
        let nic = format!("{GROUP}/Microsoft.Network/networkInterfaces/nic1");
        let primary = |name: &str, shown: bool| {
            let mut config = json!({"name": name, "properties": {
                "primary": true, "subnet": {"id": format!("{GROUP}/Microsoft.Network/virtualNetworks/v/subnets/nodes")},
                "privateIPAddressVersion": "IPv4"}});
            if shown {
                config["properties"]["privateIPAddress"] = json!("10.240.0.4");
            }
            config
        };
        world.put(&nic, json!({"id": nic, "properties": {"ipConfigurations": [primary("ipconfig1", true)]}}));
        world.put(
            &format!("{GROUP}/Microsoft.Compute/virtualMachines/vm1"),
            json!({"properties": {"networkProfile": {"networkInterfaces": [{"id": nic, "properties": {"primary": true}}]}}}),
        );
        world.put(
            &format!("{GROUP}/Microsoft.Compute/virtualMachineScaleSets/set/virtualMachines/0"),
            json!({"properties": {"networkProfileConfiguration": {"networkInterfaceConfigurations": [
                {"name": "other", "properties": {"primary": false, "ipConfigurations": [primary("x", false)]}},
                {"name": "nic", "properties": {"primary": true, "ipConfigurations": [primary("ipconfig1", false)]}}]}}}),
        );
        let emulator = Self { world: Arc::new(Mutex::new(world)), address };
        let served = emulator.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let emulator = served.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| emulator.clone().handle(request));
                    // A cut connection is part of the play.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        emulator
    }

    pub fn fault(&self, fault: Fault) {
        self.world.lock().unwrap().faults.push_back(fault);
    }

    /// Tokens that were given are good no more.
    pub fn revoke_tokens(&self) {
        let mut world = self.world.lock().unwrap();
        world.token_good = world.tokens + 1;
    }

    /// Addresses that configurations on any interface have.
    pub fn in_use(&self) -> usize {
        self.world.lock().unwrap().taken.len()
    }

    async fn handle(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        if path.starts_with("/metadata/identity/oauth2/token") {
            return Ok(self.token(&parts));
        }
        let fault = {
            let mut world = self.world.lock().unwrap();
            world.requests += 1;
            let bearer = parts.headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
            let number = bearer.strip_prefix("Bearer token-").and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
            if number < world.token_good {
                return Ok(error(401, "ExpiredAuthenticationToken"));
            }
            // Faults are for writes and for what follows them; reading alone is spared unless nothing else is wanted.
            let wants_put = matches!(
                world.faults.front(),
                Some(Fault::Meddle | Fault::FailLater(_) | Fault::ByLocation | Fault::Cut)
            );
            if wants_put && parts.method != Method::PUT { None } else { world.faults.pop_front() }
        };
        if !parts.uri.query().is_some_and(|query| query.starts_with("api-version=20"))
            && !path.starts_with("/operations")
        {
            return Ok(error(400, "MissingApiVersionParameter"));
        }
        let tag = parts.headers.get("if-match").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (mut failing, mut by_location) = (None, false);
        match fault {
            Some(Fault::Answer(status, headers, body)) => {
                let mut answer = Response::builder().status(status);
                for (name, value) in headers {
                    answer = answer.header(name, value.replace("{self}", &self.address));
                }
                return Ok(answer.body(Full::new(Bytes::from(body))).unwrap());
            }
            Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
            Some(Fault::Meddle) => self.world.lock().unwrap().meddle(&path),
            Some(Fault::FailLater(code)) => failing = Some(code),
            Some(Fault::ByLocation) => by_location = true,
            Some(Fault::Cut) => {
                self.world.lock().unwrap().write(&path, tag.as_deref(), &body);
                return Ok(Response::builder().status(599).body(Full::default()).unwrap());
            }
            None => {}
        }
        let mut world = self.world.lock().unwrap();
        if let Some(number) = path.strip_prefix("/operations/") {
            return Ok(world.look(number.parse().unwrap()));
        }
        if parts.method == Method::PUT {
            world.puts += 1;
            if failing.is_none()
                && let Some(refused) = world.write(&path, tag.as_deref(), &body)
            {
                return Ok(refused);
            }
            if world.looks == 0 && failing.is_none() && !by_location {
                return Ok(answer(200, &json!({})));
            }
            let looks = world.looks;
            world.operations.push((looks, failing, by_location));
            let place = format!("{}/operations/{}", self.address, world.operations.len() - 1);
            let accepted = Response::builder().status(StatusCode::ACCEPTED).header("retry-after", "0");
            let header = if by_location { "location" } else { "azure-asyncoperation" };
            return Ok(accepted.header(header, place).body(Full::default()).unwrap());
        }
        Ok(world.read(&path))
    }

    fn token(&self, parts: &http::request::Parts) -> Response<Full<Bytes>> {
        let query = parts.uri.query().unwrap_or_default();
        if parts.headers.get("metadata").is_none_or(|value| value != "true")
            || !query.contains("api-version=2018-02-01")
        {
            return answer(400, &json!({"error": "invalid_request", "error_description": "bad request"}));
        }
        let mut world = self.world.lock().unwrap();
        if let Some((status, after)) = world.token_faults.pop_front() {
            let mut refusal = answer(status, &json!({"error": "x", "error_description": "emulated"}));
            if let Some(after) = after {
                refusal.headers_mut().insert("retry-after", after.parse().unwrap());
            }
            return refusal;
        }
        world.tokens += 1;
        let lasts = world.token_lasts.to_string();
        answer(200, &json!({"access_token": format!("token-{}", world.tokens), "expires_in": lasts}))
    }
}

impl World {
    fn put(&mut self, id: &str, mut resource: Value) {
        self.etag += 1;
        resource["etag"] = json!(format!("W/\"{}\"", self.etag));
        self.resources.insert(id.to_lowercase(), resource);
    }

    fn meddle(&mut self, path: &str) {
        let resource = self.resources[&path.to_lowercase()].clone();
        self.put(path, resource);
    }

    fn read(&self, path: &str) -> Response<Full<Bytes>> {
        let path = path.to_lowercase();
        if let Some(instance) = path.strip_suffix("/networkinterfaces") {
            let Some(resource) = self.resources.get(instance) else { return error(404, "ResourceNotFound") };
            let nics = &resource["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"];
            let nics: Vec<Value> = nics.as_array().unwrap().to_vec();
            return answer(200, &json!({"value": nics}));
        }
        let Some(resource) = self.resources.get(&path) else { return error(404, "ResourceNotFound") };
        let mut resource = resource.clone();
        // An instance shows no addresses in its own description.
        if let Some(nics) =
            resource.pointer_mut("/properties/networkProfileConfiguration/networkInterfaceConfigurations")
        {
            for config in nics.as_array_mut().unwrap().iter_mut().flat_map(configs) {
                config["properties"].as_object_mut().unwrap().remove("privateIPAddress");
            }
        }
        answer(200, &resource)
    }

    /// Whole or not at all.
    fn write(&mut self, path: &str, tag: Option<&str>, body: &[u8]) -> Option<Response<Full<Bytes>>> {
        let id = path.to_lowercase();
        let Some(old) = self.resources.get(&id).cloned() else { return Some(error(404, "ResourceNotFound")) };
        if tag.is_some_and(|tag| old["etag"] != tag) {
            return Some(error(412, "PreconditionFailed"));
        }
        let Ok(mut new) = serde_json::from_slice::<Value>(body) else {
            return Some(error(400, "InvalidRequestContent"));
        };
        let mut old = old;
        let known: BTreeMap<String, Value> = all_configs(&mut old)
            .into_iter()
            .map(|config| {
                (config["name"].as_str().unwrap().to_owned(), config["properties"]["privateIPAddress"].clone())
            })
            .collect();
        let mut taken = self.taken.clone();
        let kept: BTreeSet<String> =
            all_configs(&mut new).iter().map(|config| config["name"].as_str().unwrap().to_owned()).collect();
        for config in all_configs(&mut old).iter().filter(|config| !kept.contains(config["name"].as_str().unwrap())) {
            for at in span(config) {
                taken.remove(&at);
            }
        }
        for config in all_configs(&mut new) {
            let name = config["name"].as_str().unwrap();
            if let Some(address) = known.get(name).filter(|address| !address.is_null()) {
                config["properties"]["privateIPAddress"] = address.clone();
            } else if !config["properties"]["primary"].as_bool().unwrap_or(false) {
                let v6 = config["properties"]["privateIPAddressVersion"] == "IPv6";
                let fixed = config["properties"]["privateIPAddress"].clone();
                let free = |at: u32| (at..at + width(config)).all(|at| at <= self.room.1 && !taken.contains(&(v6, at)));
                let first = if fixed.is_null() {
                    (self.room.0..=self.room.1).find(|at| at % width(config) == 0 && free(*at))
                } else {
                    Some(offset(&fixed).1).filter(|at| free(*at))
                };
                let Some(first) = first else {
                    return Some(error(400, if fixed.is_null() { "SubnetIsFull" } else { "PrivateIPAddressInUse" }));
                };
                config["properties"]["privateIPAddress"] = json!(text(v6, first));
                taken.extend(span(config));
            }
        }
        self.taken = taken;
        self.put(path, new);
        None
    }

    fn look(&mut self, number: usize) -> Response<Full<Bytes>> {
        let (left, failing, by_location) = &mut self.operations[number];
        if std::mem::take(by_location) {
            // From now on it answers by its status code alone.
            let body = Full::new(Bytes::from(r#"{"error":{"code":"TooManyRequests"}}"#));
            return Response::builder().status(429).header("retry-after", "1").body(body).unwrap();
        }
        if *left > 0 {
            *left -= 1;
            let body = Full::new(Bytes::from(json!({"status": "InProgress"}).to_string()));
            return Response::builder().status(200).header("retry-after", "0").body(body).unwrap();
        }
        match failing {
            None => answer(200, &json!({"status": "Succeeded"})),
            Some(code) => answer(200, &json!({"status": "Failed", "error": {"code": *code, "message": "emulated"}})),
        }
    }
}

/// IPv6, and the offset in the subnet; a prefix counts by its first address.
fn offset(address: &Value) -> (bool, u32) {
    let text = address.as_str().unwrap_or("0.0.0.0");
    match text.split('/').next().unwrap().parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => (false, u32::from(v4).wrapping_sub(SUBNET)),
        IpAddr::V6(v6) => (true, u32::try_from(u128::from(v6).wrapping_sub(SUBNET_V6)).unwrap_or(u32::MAX)),
    }
}

fn text(v6: bool, at: u32) -> String {
    if v6 { Ipv6Addr::from(SUBNET_V6 + u128::from(at)).to_string() } else { Ipv4Addr::from(SUBNET + at).to_string() }
}

/// How many addresses a configuration has.
fn width(config: &Value) -> u32 {
    let bits = if config["properties"]["privateIPAddressVersion"] == "IPv6" { 128 } else { 32 };
    config["properties"]["privateIPAddressPrefixLength"].as_u64().map_or(1, |length| 1 << (bits - length))
}

fn span(config: &Value) -> impl Iterator<Item = (bool, u32)> + use<> {
    let (v6, first) = offset(&config["properties"]["privateIPAddress"]);
    (first..first.saturating_add(width(config))).map(move |at| (v6, at))
}

fn configs(nic: &mut Value) -> impl Iterator<Item = &mut Value> {
    nic["properties"]["ipConfigurations"].as_array_mut().into_iter().flatten()
}

fn all_configs(resource: &mut Value) -> Vec<&mut Value> {
    if resource["properties"]["ipConfigurations"].is_array() {
        return configs(resource).collect();
    }
    let nics = resource.pointer_mut("/properties/networkProfileConfiguration/networkInterfaceConfigurations");
    nics.and_then(Value::as_array_mut).into_iter().flatten().flat_map(configs).collect()
}
