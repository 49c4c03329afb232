//! Reading containers' logs: the end, since when, with times, and as they grow.

use bytes::Bytes;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a followed log is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Lines are sent in pieces of about this size.
const PIECE_BYTES: usize = 32 * 1024;

/// What to read and how.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub follow: bool,
    pub timestamps: bool,
    pub tail: Option<usize>,
    pub since: Option<jiff::Timestamp>,
    pub limit_bytes: Option<u64>,
}

/// A line as the container wrote it, or a part of one.
struct Line<'a> {
    time: &'a str,
    whole: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let _stream = fields.next()?;
    let whole = fields.next()? == b"F";
    Some(Line { time, whole, text: fields.next().unwrap_or_default() })
}

impl Options {
    /// The line as the reader wants it, or nothing if it is too old.
    fn render(&self, raw: &[u8]) -> Option<Vec<u8>> {
        let line = parse(raw)?;
        if let Some(since) = self.since
            && line.time.parse::<jiff::Timestamp>().is_ok_and(|t| t < since)
        {
            return None;
        }
        let mut text = Vec::with_capacity(line.text.len() + 40);
        if self.timestamps {
            text.extend_from_slice(line.time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(line.text);
        if line.whole {
            text.push(b'\n');
        }
        Some(text)
    }
}

/// Sends a log into the channel. `live` says whether the container still writes. Blocking: call on a thread for it.
pub(super) fn send(place: &PathBuf, options: &Options, live: impl Fn() -> bool, out: &mpsc::Sender<Bytes>) {
    let Ok(file) = File::open(place) else {
        return;
    };
    let mut reader = BufReader::new(file);
    let mut left = options.limit_bytes.unwrap_or(u64::MAX);
    let mut emit = |mut text: Vec<u8>| {
        text.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= text.len() as u64;
        (text.is_empty() || out.blocking_send(Bytes::from(text)).is_ok()) && left > 0
    };
    let mut last: VecDeque<Vec<u8>> = VecDeque::new();
    let mut piece = Vec::new();
    let mut partial = Vec::new();
    while next_line(&mut reader, &mut partial) {
        let Some(text) = options.render(partial.trim_ascii_end_newline()) else {
            partial.clear();
            continue;
        };
        partial.clear();
        match options.tail {
            Some(tail) => {
                last.push_back(text);
                if last.len() > tail {
                    last.pop_front();
                }
            }
            None => piece.extend_from_slice(&text),
        }
        if piece.len() > PIECE_BYTES && !emit(std::mem::take(&mut piece)) {
            return;
        }
    }
    last.into_iter().for_each(|text| piece.extend_from_slice(&text));
    if !emit(piece) || !options.follow {
        return;
    }
    loop {
        // Asked before the last look: what was written before the end is still read.
        let goes_on = live();
        let mut piece = Vec::new();
        while next_line(&mut reader, &mut partial) {
            piece.extend(options.render(partial.trim_ascii_end_newline()).unwrap_or_default());
            partial.clear();
        }
        if !emit(piece) || !goes_on || out.is_closed() {
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Appends to `line` up to a line's end. False when the file has no whole line any more; the part is kept.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> bool {
    reader.read_until(b'\n', line).is_ok() && line.last() == Some(&b'\n')
}

trait TrimNewline {
    fn trim_ascii_end_newline(&self) -> &[u8];
}

impl TrimNewline for Vec<u8> {
    fn trim_ascii_end_newline(&self) -> &[u8] {
        self.strip_suffix(b"\n").unwrap_or(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, options: &Options) -> String {
        let place = std::env::temp_dir().join(format!("weft-log-{}-{}", std::process::id(), uuid::Uuid::new_v4()));
        std::fs::write(&place, text).expect("writes");
        let (sender, mut receiver) = mpsc::channel(64);
        send(&place, options, || false, &sender);
        std::fs::remove_file(&place).expect("removes");
        drop(sender);
        let mut all = Vec::new();
        while let Some(bytes) = receiver.blocking_recv() {
            all.extend_from_slice(&bytes);
        }
        String::from_utf8(all).expect("is text")
    }

    const LOG: &str = "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr P tw\n\
                       2026-01-01T00:00:02Z stderr F o\n2026-01-01T00:00:03Z stdout F three\n";

    #[test]
    fn whole_tail_since_limit_and_times() {
        assert_eq!(read(LOG, &Options::default()), "one\ntwo\nthree\n");
        assert_eq!(read(LOG, &Options { tail: Some(1), ..Options::default() }), "three\n");
        let since = "2026-01-01T00:00:03Z".parse().ok();
        assert_eq!(read(LOG, &Options { since, ..Options::default() }), "three\n");
        assert_eq!(read(LOG, &Options { limit_bytes: Some(5), ..Options::default() }), "one\nt");
        let timestamps = Options { timestamps: true, tail: Some(1), ..Options::default() };
        assert_eq!(read(LOG, &timestamps), "2026-01-01T00:00:03Z three\n");
        assert_eq!(read("garbage\n", &Options::default()), "");
    }
}
