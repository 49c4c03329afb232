//! Stand-ins for the agent, the operator and the CNI executable: plain routing by the kernel, no policy, no eBPF. They
//! show that the embedded cluster works by itself, and what it asks of the real ones.

use serde_json::{Value, json};
use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use weft_lab_client::Client;
use weft_lab_client::kubeconfig::Access;
use weft_sys::netlink::{Netlink, VethEnd};
use weft_sys::netns;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Runs one of the asynchronous ones.
pub(crate) fn run<F: Future<Output = Outcome>>(part: impl FnOnce() -> F) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(part())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stub: {error}");
            ExitCode::FAILURE
        }
    }
}

fn option(name: &str) -> String {
    std::env::args().skip_while(|a| a != name).nth(1).unwrap_or_default()
}

fn client() -> Result<Client, Box<dyn std::error::Error>> {
    Ok(Client::new(Access::read(Path::new(&option("--kubeconfig")))?)?)
}

/// Gives each node the prefix of its number.
pub(crate) async fn operator() -> Outcome {
    let client = client()?;
    let pools = option("--pod-cidr");
    loop {
        let nodes = client.get("/api/v1/nodes").await?;
        for node in nodes["items"].as_array().into_iter().flatten().filter(|n| n["spec"]["podCIDRs"].is_null()) {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let number: usize = name.trim_start_matches("node-").parse()?;
            let mut cidrs = Vec::new();
            for pool in pools.split(',') {
                let cidr = match pool.parse()? {
                    ipnet::IpNet::V4(v4) => v4.subnets(24)?.nth(number).map(ipnet::IpNet::V4),
                    ipnet::IpNet::V6(v6) => v6.subnets(64)?.nth(number).map(ipnet::IpNet::V6),
                };
                cidrs.extend(cidr.map(|c| c.to_string()));
            }
            let patch = json!({"spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs}});
            client.merge(&format!("/api/v1/nodes/{name}"), &patch).await?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Installs the CNI executable and its configuration, once the node has prefixes.
pub(crate) async fn agent() -> Outcome {
    let client = client()?;
    let (bin, conf) = (PathBuf::from(option("--cni-bin-dir")), PathBuf::from(option("--cni-conf-dir")));
    let path = format!("/api/v1/nodes/{}", option("--node-name"));
    loop {
        let node = client.get(&path).await.unwrap_or_default();
        if let Some(cidrs) = node["spec"]["podCIDRs"].as_array() {
            let executable = bin.join("weft-cni");
            let _ = fs::remove_file(&executable);
            std::os::unix::fs::symlink(std::env::current_exe()?, &executable)?;
            let plugin = json!({"type": "weft-cni", "cidrs": cidrs, "dir": option("--state-dir")});
            let list = json!({"cniVersion": "1.1.0", "name": "stub", "plugins": [plugin]});
            fs::write(conf.join(".05-stub"), list.to_string())?;
            fs::rename(conf.join(".05-stub"), conf.join("05-stub.conflist"))?;
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::future::pending().await
}

/// The CNI executable.
pub(crate) fn cni() -> ExitCode {
    match cni_command() {
        Ok(answer) => {
            print!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            print!("{}", json!({"cniVersion": "1.1.0", "code": 100, "msg": error.to_string()}));
            ExitCode::FAILURE
        }
    }
}

fn cni_command() -> Result<String, Box<dyn std::error::Error>> {
    let mut input = String::new();
    io::stdin().read_to_string(&mut input)?;
    let config: Value = serde_json::from_str(&input)?;
    let env = |name: &str| std::env::var(name).map_err(|_| format!("{name}: expected"));
    let link = || env("CNI_CONTAINERID").map(|id| format!("s{}", id.chars().take(12).collect::<String>()));
    match env("CNI_COMMAND")?.as_str() {
        "ADD" => {
            let addresses = allocate(&config)?;
            attach(&link()?, Path::new(&env("CNI_NETNS")?), &addresses)?;
            let ips: Vec<Value> = addresses.iter().map(|a| json!({"address": format!("{a}/{}", bits(*a))})).collect();
            Ok(json!({"cniVersion": "1.1.0", "ips": ips}).to_string())
        }
        "DEL" => {
            let _ = Netlink::open()?.delete_link(&link()?);
            Ok(String::new())
        }
        _ => Ok(String::new()),
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The next number in each prefix; numbers are never used again.
fn allocate(config: &Value) -> Result<Vec<IpAddr>, Box<dyn std::error::Error>> {
    let place = Path::new(config["dir"].as_str().unwrap_or_default()).join("addresses");
    let file = fs::OpenOptions::new().create(true).append(true).read(true).open(&place)?;
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    let number: u32 = fs::read_to_string(&place)?.trim().parse().unwrap_or(4) + 1;
    fs::write(&place, number.to_string())?;
    drop(lock);
    let mut addresses = Vec::new();
    for cidr in config["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        addresses.push(match cidr.parse()? {
            ipnet::IpNet::V4(v4) => IpAddr::V4((u32::from(v4.network()) + number).into()),
            ipnet::IpNet::V6(v6) => IpAddr::V6((u128::from(v6.network()) + u128::from(number)).into()),
        });
    }
    Ok(addresses)
}

fn attach(link: &str, pod: &Path, addresses: &[IpAddr]) -> io::Result<()> {
    let (near, far) = (fs::File::open("/proc/self/ns/net")?, fs::File::open(pod)?);
    let mut netlink = Netlink::open()?;
    let near = VethEnd { name: link, netns: near.as_fd() };
    netlink.add_veth(&near, &VethEnd { name: "eth0", netns: far.as_fd() }, 1500)?;
    for gateway in ["169.254.1.1/32", "fe80::1/128"] {
        netlink.add_address(link, gateway.parse().map_err(io::Error::other)?)?;
    }
    netlink.set_up(link)?;
    for address in addresses {
        netlink.add_route((*address).into(), link, None, None)?;
    }
    netns::within(pod, || {
        let mut netlink = Netlink::open()?;
        netlink.set_up("lo")?;
        for address in addresses {
            netlink.add_address("eth0", (*address).into())?;
        }
        netlink.set_up("eth0")?;
        for address in addresses {
            let (to, gateway) = if address.is_ipv4() { ("0.0.0.0/0", "169.254.1.1") } else { ("::/0", "fe80::1") };
            let to = to.parse().map_err(io::Error::other)?;
            let gateway = gateway.parse().map_err(io::Error::other)?;
            netlink.add_route(to, "eth0", Some(gateway), Some(*address))?;
        }
        Ok(())
    })
}
