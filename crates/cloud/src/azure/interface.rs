//! The primary interface of a node's machine, and the IP configurations on it that are ours.

use super::arm::{Arm, check_id};
use crate::{CloudError, NodeRef, Wanted};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;

/// Versions of the interfaces that were read when this was written.
const COMPUTE: &str = "2024-07-01";
const NETWORK: &str = "2024-05-01";
/// The one in which instances of scale sets show their interfaces.
const SET_NETWORK: &str = "2018-10-01";
/// How the names of our configurations begin: what is not named so is not ours to touch.
const OURS: &str = "weft-";
/// Configurations that an interface can have.
const CONFIGS_MAX: usize = 256;

/// See the module.
pub(super) struct Interface {
    /// What is written: the interface, or the instance of the scale set.
    id: String,
    version: &'static str,
    resource: Value,
    /// Where in it the configurations are.
    pointer: String,
    /// Addresses by configuration, where the resource itself does not show them.
    shown: Option<BTreeMap<String, String>>,
}

fn field(what: &str, expected: &str) -> CloudError {
    CloudError::invalid(format!("{what}: expected {expected}"))
}

impl Interface {
    /// Reads it.
    pub(super) async fn read(arm: &Arm, node: &NodeRef) -> Result<Self, CloudError> {
        let id = node.provider_id.strip_prefix("azure://").ok_or_else(|| {
            let found = &node.provider_id;
            CloudError::invalid(format!(
                "{}: spec.providerID: expected azure:///subscriptions/..., found {found:?}",
                node.name
            ))
        })?;
        check_id(id, "virtualMachines")?;
        if id.to_ascii_lowercase().contains("/virtualmachinescalesets/") {
            Self::of_instance(arm, id).await
        } else {
            Self::of_machine(arm, id).await
        }
    }

    async fn of_machine(arm: &Arm, id: &str) -> Result<Self, CloudError> {
        let machine = arm.get(id, COMPUTE).await?;
        let list = machine["properties"]["networkProfile"]["networkInterfaces"].as_array();
        let list = list.filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| field("properties.networkProfile.networkInterfaces", "at least one"))?;
        let primary = list.iter().find(|nic| nic["properties"]["primary"] == true).unwrap_or(&list[0]);
        let nic = primary["id"].as_str().ok_or_else(|| field("networkInterfaces[].id", "a text"))?;
        check_id(nic, "networkInterfaces")?;
        let resource = arm.get(nic, NETWORK).await?;
        let interface = Self {
            id: nic.to_owned(),
            version: NETWORK,
            resource,
            pointer: "/properties/ipConfigurations".to_owned(),
            shown: None,
        };
        interface.configs().map(drop)?;
        Ok(interface)
    }

    async fn of_instance(arm: &Arm, id: &str) -> Result<Self, CloudError> {
        let resource = arm.get(id, COMPUTE).await?;
        let place = "/properties/networkProfileConfiguration/networkInterfaceConfigurations";
        let list = resource.pointer(place).and_then(Value::as_array).filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| field(place, "at least one"))?;
        let at = list.iter().position(|nic| nic["properties"]["primary"] == true).unwrap_or(0);
        let name = list[at]["name"].as_str().unwrap_or_default().to_owned();
        let shown = arm.get(&format!("{id}/networkInterfaces"), SET_NETWORK).await?;
        let shown = shown["value"].as_array().ok_or_else(|| field("networkInterfaces.value", "a list"))?;
        let own = shown.iter().filter(|nic| nic["name"] == name.as_str());
        let configs = own.flat_map(|nic| nic["properties"]["ipConfigurations"].as_array().into_iter().flatten());
        let texts = configs.filter_map(|config| {
            let address = config["properties"]["privateIPAddress"].as_str()?;
            Some((config["name"].as_str()?.to_owned(), address.to_owned()))
        });
        let interface = Self {
            id: id.to_owned(),
            version: COMPUTE,
            shown: Some(texts.collect()),
            resource,
            pointer: format!("{place}/{at}/properties/ipConfigurations"),
        };
        interface.configs().map(drop)?;
        Ok(interface)
    }

    fn configs(&self) -> Result<&Vec<Value>, CloudError> {
        let list = self.resource.pointer(&self.pointer).and_then(Value::as_array).filter(|list| !list.is_empty());
        list.ok_or_else(|| field(&self.pointer, "a list with at least one"))
    }

    fn configs_mut(&mut self) -> Result<&mut Vec<Value>, CloudError> {
        let pointer = self.pointer.clone();
        let list = self.resource.pointer_mut(&pointer).and_then(Value::as_array_mut);
        list.ok_or_else(|| field(&pointer, "a list"))
    }

    fn is_ours(config: &Value) -> bool {
        config["name"].as_str().is_some_and(|name| name.starts_with(OURS))
    }

    /// The block of a configuration; `None`: it has none yet.
    fn block(&self, config: &Value) -> Result<Option<IpNet>, CloudError> {
        let name = config["name"].as_str().unwrap_or_default();
        let own = config["properties"]["privateIPAddress"].as_str();
        let text = match &self.shown {
            Some(shown) => shown.get(name).map(String::as_str),
            None => own,
        };
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
        let invalid = || CloudError::invalid(format!("{name}: privateIPAddress: expected an address, found {text:?}"));
        let length = config["properties"]["privateIPAddressPrefixLength"].as_u64();
        let net = match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
            (Ok(net), _) => net,
            (_, Ok(address)) => match length {
                None => IpNet::from(address),
                Some(length) => {
                    let length = u8::try_from(length).map_err(|_| invalid())?;
                    IpNet::new(address, length).map_err(|_| invalid())?
                }
            },
            _ => return Err(invalid()),
        };
        if net.trunc() == net { Ok(Some(net)) } else { Err(invalid()) }
    }

    /// Blocks of our configurations.
    pub(super) fn ours(&self) -> Result<BTreeSet<IpNet>, CloudError> {
        let ours = self.configs()?.iter().filter(|config| Self::is_ours(config));
        ours.filter_map(|config| self.block(config).transpose()).collect()
    }

    /// Adds configurations whose addresses the platform chooses.
    pub(super) fn add(&mut self, wanted: Wanted, subnet: Option<&str>) -> Result<(), CloudError> {
        let bits = if wanted.ipv6 { 128 } else { 32 };
        for _ in 0..wanted.count {
            let mut properties = json!({"privateIPAllocationMethod": "Dynamic"});
            if wanted.length < bits {
                properties["privateIPAddressPrefixLength"] = json!(wanted.length);
            }
            self.push(properties, wanted.ipv6, subnet)?;
        }
        Ok(())
    }

    /// Adds configurations with these very blocks, where they are missing.
    pub(super) fn restore(&mut self, blocks: &[IpNet], subnet: Option<&str>) -> Result<bool, CloudError> {
        let has = self.ours()?;
        let missing: Vec<IpNet> = blocks.iter().filter(|net| !has.contains(*net)).copied().collect();
        for net in &missing {
            let single = net.prefix_len() == net.max_prefix_len();
            let text = if single { net.addr().to_string() } else { net.to_string() };
            let mut properties = json!({"privateIPAllocationMethod": "Static", "privateIPAddress": text});
            if !single {
                properties["privateIPAddressPrefixLength"] = json!(net.prefix_len());
            }
            self.push(properties, net.addr().is_ipv6(), subnet)?;
        }
        Ok(!missing.is_empty())
    }

    fn push(&mut self, mut properties: Value, ipv6: bool, subnet: Option<&str>) -> Result<(), CloudError> {
        let own = self.configs()?.iter().find_map(|config| config["properties"]["subnet"]["id"].as_str());
        let subnet = subnet.or(own).ok_or_else(|| field("ipConfigurations[].properties.subnet.id", "a text"))?;
        properties["subnet"] = json!({"id": subnet});
        properties["primary"] = json!(false);
        properties["privateIPAddressVersion"] = json!(if ipv6 { "IPv6" } else { "IPv4" });
        let count = self.configs()?.len();
        if count >= CONFIGS_MAX {
            let message = format!("an interface has at most {CONFIGS_MAX} IP configurations");
            return Err(CloudError::Quota { message });
        }
        let name = format!("{OURS}{:016x}", RandomState::new().hash_one(count));
        self.configs_mut()?.push(json!({"name": name, "properties": properties}));
        Ok(())
    }

    /// Takes our configurations of these blocks.
    pub(super) fn remove(&mut self, blocks: &[IpNet]) -> Result<bool, CloudError> {
        let mut gone: BTreeSet<String> = BTreeSet::new();
        for config in self.configs()?.iter().filter(|config| Self::is_ours(config)) {
            if self.block(config)?.is_some_and(|net| blocks.contains(&net)) {
                gone.extend(config["name"].as_str().map(str::to_owned));
            }
        }
        let kept = |config: &Value| !config["name"].as_str().is_some_and(|name| gone.contains(name));
        self.configs_mut()?.retain(kept);
        Ok(!gone.is_empty())
    }

    /// Writes it, if nobody else did.
    pub(super) async fn write(&self, arm: &Arm) -> Result<(), CloudError> {
        let tag = self.resource["etag"].as_str();
        arm.put(&self.id, self.version, tag, &self.resource).await
    }
}
