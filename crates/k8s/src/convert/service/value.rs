//! Values of fields that Services and EndpointSlices share.

use crate::convert::field::{Path, Read};
use crate::convert::objects::protocol;
use crate::convert::problem::Problem;
use weft_model::intent::Protocol;

/// The value, or a default beside a note of what is wrong.
pub(crate) fn keep<T: Default>(wrong: &mut Vec<Problem>, read: Read<T>) -> T {
    read.unwrap_or_else(|problems| {
        wrong.extend(problems);
        T::default()
    })
}

/// A port's number, or 0 where that is the least.
pub(crate) fn number(path: Path<'_>, value: i64, least: u16) -> Read<u16> {
    let read = u16::try_from(value).ok().filter(|number| *number >= least);
    read.map_or_else(|| path.fail(format!("{value}, expected a number from {least} to 65535")), Ok)
}

pub(crate) fn transport(path: Path<'_>, text: &str) -> Read<Protocol> {
    protocol(text).map_or_else(|| path.fail(format!("{text:?}, expected TCP, UDP or SCTP")), Ok)
}
