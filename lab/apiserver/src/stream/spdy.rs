//! SPDY/3.1 as `kubectl port-forward` speaks it inside a websocket: frames from bytes and bytes from frames, no I/O.
//!
//! Clients of Kubernetes use neither priorities nor windows, so both are read over. Names and values of headers come
//! compressed, all of a connection in one stream; ours go out as stored blocks of such a stream, which every inflater
//! reads.

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

/// Only SPDY/3 has been seen in use.
const VERSION: u16 = 3;
/// Largest data frame; clients of Kubernetes write 32 KiB at once.
const DATA_MAX: usize = 1 << 20;
/// Largest control frame.
const CONTROL_MAX: usize = 16 << 10;
/// Most bytes of names and values that a frame's headers may unpack to.
const HEADERS_MAX: usize = 64 << 10;
/// Most headers of a frame.
const HEADER_COUNT_MAX: u32 = 64;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const HEADERS: u16 = 8;

/// Statuses of a stream that is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    /// Its headers are not those of a port-forward.
    Protocol = 1,
    /// There are too many.
    TooMany = 3,
}

/// What a client sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Frame {
    /// Opens a stream.
    Open { stream: u32, headers: Vec<(String, String)>, fin: bool },
    /// Bytes of a stream; `fin`: the last ones.
    Data { stream: u32, bytes: Bytes, fin: bool },
    /// Ends a stream in both directions.
    Reset { stream: u32 },
    /// Wants the same number back.
    Ping { number: u32 },
    /// Nothing that matters here.
    Ignored,
}

/// What is wrong with what a client sent; the connection cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("SPDY: {0}")]
pub(super) struct Malformed(String);

fn malformed<T>(why: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(why.into()))
}

/// Reads the frames of one connection.
pub(super) struct Decoder {
    buffer: BytesMut,
    inflater: Decompress,
    dictionary: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { buffer: BytesMut::new(), inflater: Decompress::new(true), dictionary: dictionary() }
    }

    /// Takes what came in.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame; `None`: the rest of it is yet to come.
    ///
    /// # Errors
    /// What is no SPDY, or too large.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Malformed> {
        let Some(head) = self.buffer.first_chunk::<8>() else { return Ok(None) };
        let (first, second) = head.split_at(4);
        let word = |bytes: &[u8]| bytes.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte));
        let (first, second) = (word(first), word(second));
        let (flags, length) = (head[4], usize::try_from(second & 0xff_ffff).unwrap_or(usize::MAX));
        let control = first >> 31 == 1;
        let limit = if control { CONTROL_MAX } else { DATA_MAX };
        if length > limit {
            return malformed(format!("a frame of {length} bytes, expected at most {limit}"));
        }
        if self.buffer.len() < 8 + length {
            return Ok(None);
        }
        self.buffer.advance(8);
        let payload = self.buffer.split_to(length).freeze();
        if !control {
            return Ok(Some(Frame::Data { stream: first, bytes: payload, fin: flags & FIN != 0 }));
        }
        // The upper half: the control bit and the version. The lower: the kind.
        let (version, kind) = ((first >> 16) & 0x7fff, u16::try_from(first & 0xffff).unwrap_or_default());
        if version != u32::from(VERSION) {
            return malformed(format!("version {version}, expected {VERSION}"));
        }
        self.control(kind, flags, payload).map(Some)
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: Bytes) -> Result<Frame, Malformed> {
        let short = |_| Malformed(format!("a control frame of kind {kind} that is too short"));
        match kind {
            SYN_STREAM => {
                let stream = payload.try_get_u32().map_err(short)? & 0x7fff_ffff;
                // The stream that it belongs to, its priority, a slot: of no meaning here.
                payload.try_get_u32().and_then(|_| payload.try_get_u16()).map_err(short)?;
                Ok(Frame::Open { stream, headers: self.headers(&payload)?, fin: flags & FIN != 0 })
            }
            RST_STREAM => Ok(Frame::Reset { stream: payload.try_get_u32().map_err(short)? & 0x7fff_ffff }),
            PING => Ok(Frame::Ping { number: payload.try_get_u32().map_err(short)? }),
            SYN_REPLY | HEADERS => {
                payload.try_get_u32().map_err(short)?;
                // What is compressed later refers to it.
                self.headers(&payload)?;
                Ok(Frame::Ignored)
            }
            _ => Ok(Frame::Ignored),
        }
    }

    fn headers(&mut self, packed: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
        let unpacked = self.inflate(packed)?;
        let mut rest = unpacked.as_slice();
        let short = |_| Malformed("headers that end too early".to_owned());
        let count = rest.try_get_u32().map_err(short)?;
        if count > HEADER_COUNT_MAX {
            return malformed(format!("{count} headers, expected at most {HEADER_COUNT_MAX}"));
        }
        let mut text = || {
            let length = usize::try_from(rest.try_get_u32().map_err(short)?).unwrap_or(usize::MAX);
            let Some((text, others)) = rest.split_at_checked(length) else {
                return malformed("a header that is longer than its frame");
            };
            rest = others;
            Ok(String::from_utf8_lossy(text).into_owned())
        };
        (0..count).map(|_| Ok((text()?.to_ascii_lowercase(), text()?))).collect()
    }

    fn inflate(&mut self, packed: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut unpacked = Vec::with_capacity(HEADERS_MAX);
        let mut rest = packed;
        while !rest.is_empty() {
            let before = (self.inflater.total_in(), unpacked.len());
            let result = self.inflater.decompress_vec(rest, &mut unpacked, FlushDecompress::Sync);
            let consumed = usize::try_from(self.inflater.total_in() - before.0).unwrap_or(usize::MAX);
            rest = rest.get(consumed..).unwrap_or_default();
            let wants_dictionary = match &result {
                Err(error) => error.needs_dictionary().is_some(),
                Ok(_) => false,
            };
            if wants_dictionary {
                let set = self.inflater.set_dictionary(&self.dictionary);
                set.map_err(|_| Malformed("headers packed with another dictionary".to_owned()))?;
                continue;
            }
            if unpacked.len() == unpacked.capacity() {
                return malformed(format!("headers that unpack to {HEADERS_MAX} bytes or more"));
            }
            let stuck = consumed == 0 && unpacked.len() == before.1;
            if stuck || !matches!(result, Ok(Status::Ok | Status::BufError)) {
                return malformed("headers that are not compressed as zlib does it");
            }
        }
        Ok(unpacked)
    }
}

/// Writes the frames of one connection.
#[derive(Default)]
pub(super) struct Encoder {
    /// The compressed stream of headers has begun.
    began: bool,
}

impl Encoder {
    /// Accepts a stream that the client opened, without headers of our own.
    pub(super) fn accept(&mut self, stream: u32) -> Vec<u8> {
        let mut payload = stream.to_be_bytes().to_vec();
        if !std::mem::replace(&mut self.began, true) {
            // Of zlib: deflate with a window of 32 KiB, no dictionary.
            payload.extend_from_slice(&[0x78, 0x01]);
        }
        // A stored block: its length, the length's complement, and the number of headers, zero.
        payload.extend_from_slice(&[0x00, 4, 0, !4, !0, 0, 0, 0, 0]);
        // An empty one makes the inflater give out what it has.
        payload.extend_from_slice(&[0x00, 0, 0, !0, !0]);
        control(SYN_REPLY, &payload)
    }
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + payload.len());
    frame.extend((VERSION | 0x8000).to_be_bytes());
    frame.extend(kind.to_be_bytes());
    frame.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(payload);
    frame
}

/// Refuses a stream, or ends it.
pub(super) fn refuse(stream: u32, why: Refused) -> Vec<u8> {
    control(RST_STREAM, &[stream.to_be_bytes(), (why as u32).to_be_bytes()].concat())
}

/// The answer to a ping.
pub(super) fn pong(number: u32) -> Vec<u8> {
    control(PING, &number.to_be_bytes())
}

/// Bytes of a stream, at most 16 MiB; `fin`: the last ones.
pub(super) fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + bytes.len());
    frame.extend(stream.to_be_bytes());
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX) & 0xff_ffff;
    frame.extend((length | if fin { u32::from(FIN) << 24 } else { 0 }).to_be_bytes());
    frame.extend(bytes);
    frame
}

/// What every compressor of SPDY/3 headers starts with, as the specification has it: words behind their lengths, then
/// text that is in headers often.
fn dictionary() -> Vec<u8> {
    const NAMES: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
        content-length content-location content-md5 content-range content-type date etag expect expires from host \
        if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards \
        pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding \
        upgrade user-agent vary via warning www-authenticate method get status";
    const VALUES: [&str; 8] = ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
    const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
        203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
        403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
        Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
        chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
        text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut bytes = Vec::with_capacity(1423);
    for word in NAMES.split(' ').filter(|word| !word.is_empty()).chain(VALUES) {
        bytes.extend(u32::try_from(word.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(word.bytes());
    }
    bytes.extend(TEXT.bytes());
    bytes
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    /// A client's half: it compresses headers, as kubectl does.
    pub(in super::super) struct Client(Compress);

    impl Client {
        pub(in super::super) fn new() -> Self {
            let mut packer = Compress::new(Compression::best(), true);
            packer.set_dictionary(&dictionary()).expect("the dictionary fits");
            Self(packer)
        }

        pub(in super::super) fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
            let mut plain = u32::try_from(headers.len()).expect("few").to_be_bytes().to_vec();
            for text in headers.iter().flat_map(|(name, value)| [name, value]) {
                plain.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
                plain.extend(text.bytes());
            }
            let mut packed = Vec::with_capacity(64 << 10);
            self.0.compress_vec(&plain, &mut packed, FlushCompress::Sync).expect("compresses");
            let mut payload = stream.to_be_bytes().to_vec();
            payload.extend_from_slice(&[0; 6]);
            payload.extend(packed);
            control(SYN_STREAM, &payload)
        }
    }

    fn all(decoder: &mut Decoder) -> Result<Vec<Frame>, Malformed> {
        std::iter::from_fn(|| decoder.next().transpose()).collect()
    }

    fn adler32(bytes: &[u8]) -> u32 {
        let (low, high) = bytes.iter().fold((1_u32, 0_u32), |(low, high), byte| {
            let low = (low + u32::from(*byte)) % 65_521;
            (low, (high + low) % 65_521)
        });
        (high << 16) | low
    }

    #[test]
    fn the_dictionary_is_that_of_the_specification() {
        assert_eq!((dictionary().len(), adler32(&dictionary())), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn frames_in_pieces_with_headers_that_refer_to_former_ones() {
        let mut client = Client::new();
        let mut bytes = client.open(1, &[("streamType", "error"), ("port", "80"), ("requestID", "0")]);
        bytes.extend(client.open(3, &[("streamType", "data"), ("port", "80"), ("requestID", "0")]));
        bytes.extend(data(3, b"hello", false));
        bytes.extend(data(3, b"", true));
        bytes.extend(pong(7));
        bytes.extend(refuse(3, Refused::Protocol));
        let (mut whole, mut pieces) = (Decoder::new(), Decoder::new());
        whole.push(&bytes);
        let frames = all(&mut whole).expect("is fine");
        let mut one_by_one = Vec::new();
        for byte in bytes {
            pieces.push(&[byte]);
            one_by_one.extend(all(&mut pieces).expect("is fine"));
        }
        assert_eq!(frames, one_by_one);
        let headers = |kind: &str| {
            let pairs = [("streamtype", kind), ("port", "80"), ("requestid", "0")];
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
        };
        let expected = [
            Frame::Open { stream: 1, headers: headers("error"), fin: false },
            Frame::Open { stream: 3, headers: headers("data"), fin: false },
            Frame::Data { stream: 3, bytes: Bytes::from_static(b"hello"), fin: false },
            Frame::Data { stream: 3, bytes: Bytes::new(), fin: true },
            Frame::Ping { number: 7 },
            Frame::Reset { stream: 3 },
        ];
        assert_eq!(frames, expected);
    }

    #[test]
    fn our_answers_are_read_by_a_decoder() {
        let mut encoder = Encoder::default();
        let mut decoder = Decoder::new();
        decoder.push(&encoder.accept(1));
        decoder.push(&encoder.accept(3));
        assert_eq!(all(&mut decoder), Ok(vec![Frame::Ignored, Frame::Ignored]));
    }

    #[test]
    fn hostile_bytes_are_refused_and_never_panic() {
        let refused = |bytes: &[u8]| {
            let mut decoder = Decoder::new();
            decoder.push(bytes);
            all(&mut decoder).expect_err("must be refused").to_string()
        };
        assert!(refused(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff]).contains("at most"));
        assert!(refused(&[0x80, 2, 0, 1, 0, 0, 0, 0]).contains("version 2"));
        assert!(refused(&control(SYN_STREAM, &[0; 9])).contains("too short"));
        assert!(refused(&control(SYN_STREAM, &[0xff; 30])).contains("zlib"));
        // A bomb: a header of zeros that is far longer than a frame.
        let bomb = Client::new().open(1, &[("a", &"0".repeat(1 << 20))]);
        assert!(refused(&bomb).contains("unpack"), "{}", refused(&bomb));
        let good = Client::new().open(1, &[("streamType", "error"), ("port", "80"), ("requestID", "0")]);
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut broken = good.clone();
                broken[at] ^= 1 << bit;
                let mut decoder = Decoder::new();
                decoder.push(&broken);
                let _ = all(&mut decoder);
            }
        }
    }
}
