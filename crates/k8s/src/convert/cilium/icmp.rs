//! `icmps`: types of messages, by number or name.

use super::super::field::{Path, Read, each, get, kind, list, object, required, short_list, string};
use serde_json::{Map, Value};
use weft_model::intent::{PortMatch, PortRule, Protocol};

/// Most elements of `fields`.
const FIELDS_MAX: usize = 40;

const TYPES_V4: [(&str, u8); 14] = [
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

const TYPES_V6: [(&str, u8); 27] = [
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

/// The types that `icmps` lists; `None`: it is not there, or empty.
pub(super) fn ports(path: Path<'_>, map: &Map<String, Value>) -> Read<Option<Vec<PortRule>>> {
    let Some(items) = list(path, map, "icmps")?.filter(|items| !items.is_empty()) else { return Ok(None) };
    let lists = each(Path::Field(&path, "icmps"), items, |path, value| {
        let map = object(path, value, &["fields"])?;
        let at = Path::Field(&path, "fields");
        match short_list(path, map, "fields", FIELDS_MAX)? {
            Some(fields) if !fields.is_empty() => each(at, fields, field),
            _ => at.fail("expected at least one type"),
        }
    })?;
    Ok(Some(lists.into_iter().flatten().collect()))
}

fn field(path: Path<'_>, value: &Value) -> Read<PortRule> {
    let map = object(path, value, &["family", "type"])?;
    let at = Path::Field(&path, "family");
    let protocol = match get(map, "family").map(|family| string(at, family)).transpose()? {
        None | Some("IPv4") => Protocol::Icmp,
        Some("IPv6") => Protocol::Icmpv6,
        Some(other) => return at.fail(format!("{other:?}, expected IPv4 or IPv6")),
    };
    let value = required(path, map, "type", "a number from 0 to 255, or a name such as EchoRequest")?;
    let number = message_type(Path::Field(&path, "type"), protocol, value)?;
    Ok(PortRule { protocol, port: PortMatch::Range(number.into(), number.into()) })
}

fn message_type(path: Path<'_>, protocol: Protocol, value: &Value) -> Read<u8> {
    let (family, names) =
        if protocol == Protocol::Icmp { ("IPv4", TYPES_V4.as_slice()) } else { ("IPv6", TYPES_V6.as_slice()) };
    let expected = format!("expected a number from 0 to 255, or the name of a type of {family}, such as EchoRequest");
    let found = match value {
        Value::Number(number) => number.as_u64().and_then(|number| u8::try_from(number).ok()),
        Value::String(text) => {
            let named = names.iter().find(|(name, _)| name == text).map(|(_, number)| *number);
            // Only the plain form of a number: no sign, no zeros before it.
            named.or_else(|| text.parse::<u8>().ok().filter(|number| number.to_string() == *text))
        }
        other => return path.fail(format!("{expected}, found {}", kind(other))),
    };
    match found {
        Some(number) => Ok(number),
        None => path.fail(format!("{value}, {expected}")),
    }
}
