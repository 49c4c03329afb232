//! Messages as they come in and go out: what is refused, how large an answer may be, what somebody else must answer.

use super::zone::{Answer, Zone};
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};

/// The largest answer by UDP that we give whoever says that he takes more: what passes every link whole.
const PAYLOAD_MAX: u16 = 1232;
/// What everybody takes.
const PAYLOAD_MIN: u16 = 512;
/// Bytes of a message's header.
const HEADER: usize = 12;

/// What becomes of a message.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing: it is no question.
    Silence,
    /// This answer.
    Answer(Box<Response>),
    /// Somebody else knows.
    Forward(Box<Response>),
    /// The answer leads to this name, which somebody else knows.
    Chase(Box<Response>, Name, RecordType),
}

/// An answer in the making.
#[derive(Clone, Debug)]
pub(super) struct Response {
    message: Message,
    /// Bytes that it may have.
    room: usize,
}

impl Response {
    fn new(query: &Message, tcp: bool) -> Self {
        let mut message = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
        message.metadata = Metadata::response_from_request(&query.metadata);
        message.add_queries(query.queries.iter().cloned());
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD_MAX);
            message.set_edns(edns);
        }
        let room = match (&query.edns, tcp) {
            (_, true) => usize::from(u16::MAX),
            (None, false) => usize::from(PAYLOAD_MIN),
            (Some(edns), false) => usize::from(edns.max_payload().clamp(PAYLOAD_MIN, PAYLOAD_MAX)),
        };
        Self { message, room }
    }

    fn code(mut self, code: ResponseCode) -> Self {
        self.message.metadata.response_code = code;
        self
    }

    /// What nobody can answer.
    pub(super) fn failed(self) -> Self {
        self.code(ResponseCode::ServFail)
    }

    /// What we neither know nor ask others for.
    pub(super) fn refused(self) -> Self {
        self.code(ResponseCode::Refused)
    }

    /// With what somebody else said of the name that the answer leads to.
    pub(super) fn with_elsewhere(mut self, answer: &Message) -> Self {
        self.message.add_answers(answer.answers.iter().cloned());
        self.message.metadata.recursion_available = true;
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => self.code(answer.metadata.response_code),
            _ => self.failed(),
        }
    }

    /// The bytes to send: what does not fit is left out from the end, and the asker told to come by TCP if it is missed.
    pub(super) fn bytes(mut self) -> Option<Vec<u8>> {
        let whole = self.message.to_vec().ok()?;
        if whole.len() <= self.room {
            return Some(whole);
        }
        self.message.additionals.clear();
        let answers = self.message.to_vec().ok()?;
        if answers.len() <= self.room {
            return Some(answers);
        }
        self.message.truncate().to_vec().ok().filter(|bytes| bytes.len() <= self.room)
    }
}

/// Answers a message from the zone, as far as that goes.
pub(super) fn respond(zone: &Zone, bytes: &[u8], tcp: bool) -> Outcome {
    let answer = |response: Response| Outcome::Answer(Box::new(response));
    let Ok(query) = Message::from_vec(bytes) else { return malformed(bytes) };
    if query.metadata.message_type != MessageType::Query {
        return Outcome::Silence;
    }
    let response = Response::new(&query, tcp);
    if query.metadata.op_code != OpCode::Query {
        return answer(response.code(ResponseCode::NotImp));
    }
    let [question] = query.queries.as_slice() else { return answer(response.code(ResponseCode::FormErr)) };
    if query.edns.as_ref().is_some_and(|e| e.version() > 0) {
        return answer(response.code(ResponseCode::BADVERS));
    }
    let transfer = matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR);
    if !matches!(question.query_class(), DNSClass::IN | DNSClass::ANY) || transfer {
        return answer(response.refused());
    }
    from_zone(zone, question, response)
}

fn from_zone(zone: &Zone, question: &Query, mut response: Response) -> Outcome {
    let kind = question.query_type();
    let found = zone.answer(question.name(), kind);
    response.message.metadata.authoritative = found != Answer::NotOurs;
    match found {
        Answer::NotOurs => return Outcome::Forward(Box::new(response)),
        Answer::NoName => {
            response.message.add_authority(zone.authority(question.name()));
            response = response.code(ResponseCode::NXDomain);
        }
        Answer::NoData => {
            response.message.add_authority(zone.authority(question.name()));
        }
        Answer::Records { mut answers, additionals, elsewhere } => {
            // Askers take the first: each gets another one. A name that leads to another stays in front.
            let first = answers.iter().position(|r| r.record_type() != RecordType::CNAME).unwrap_or(answers.len());
            let rest = &mut answers[first..];
            if !rest.is_empty() {
                rest.rotate_left(usize::from(response.message.metadata.id) % rest.len());
            }
            response.message.add_answers(answers);
            response.message.add_additionals(additionals);
            if let Some(name) = elsewhere {
                return Outcome::Chase(Box::new(response), name, kind);
            }
        }
    }
    Outcome::Answer(Box::new(response))
}

/// A message that cannot be read, but has a header, is told so.
fn malformed(bytes: &[u8]) -> Outcome {
    let Some(header) = bytes.get(..HEADER) else { return Outcome::Silence };
    if header[2] & 0x80 != 0 {
        return Outcome::Silence;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let message = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    Outcome::Answer(Box::new(Response { message, room: usize::from(PAYLOAD_MIN) }))
}
