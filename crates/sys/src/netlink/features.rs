//! Features of a link, over generic netlink (what `ethtool -K` sets).

use super::{Message, NLM_ACK, Netlink};
use netlink_sys::protocols::NETLINK_GENERIC;
use std::io;

/// `GENL_ID_CTRL`, and `NLA_F_NESTED`.
const CONTROL: u16 = 16;
const NESTED: u16 = 0x8000;
const GET_FAMILY: u8 = 3;
const FEATURES_SET: u8 = 12;

/// Switches features of a link of the calling thread's namespace on or off, by the kernel's names.
///
/// # Errors
/// What the kernel says.
pub fn set(link: &str, features: &[(&str, bool)]) -> io::Result<()> {
    let mut netlink = Netlink::of(NETLINK_GENERIC)?;
    let header = |command: u8| [command, 1, 0, 0];
    let question = Message::new(CONTROL, NLM_ACK).put(&header(GET_FAMILY)).name(2, "ethtool");
    let answers = netlink.request(question)?;
    let number = answers.iter().find_map(|(_, body)| family(body));
    let number =
        number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the ethtool family has no number"))?;
    let bit = |message: Message, (name, on): &(&str, bool)| {
        message.nest(NESTED | 1, |m| {
            let named = m.name(2, name);
            if *on { named.attr(3, &[]) } else { named }
        })
    };
    let message = Message::new(number, NLM_ACK)
        .put(&header(FEATURES_SET))
        .nest(NESTED | 1, |m| m.name(2, link))
        .nest(NESTED | 3, |m| m.nest(NESTED | 3, |m| features.iter().fold(m, bit)));
    netlink.request(message).map(drop)
}

/// The number in the answer about a family.
fn family(body: &[u8]) -> Option<u16> {
    let mut rest = body.get(4..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        if u16::from_ne_bytes([rest[2], rest[3]]) == 1 {
            return Some(u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?));
        }
        rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
    }
    None
}
