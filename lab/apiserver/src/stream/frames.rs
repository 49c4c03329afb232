//! The frames between server and runner: a channel's number, a length, bytes.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest frame.
const FRAME_MAX: u32 = 1 << 20;

/// Reads a frame; `None` at the end.
///
/// # Errors
/// That the stream broke off, or the frame is too large.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(u8, Vec<u8>)>> {
    let channel = match stream.read_u8().await {
        Ok(channel) => channel,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    };
    let length = stream.read_u32().await?;
    if length > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {length} bytes")));
    }
    let mut payload = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    stream.read_exact(&mut payload).await?;
    Ok(Some((channel, payload)))
}

/// Writes a frame.
///
/// # Errors
/// That the stream broke off, or the frame is too large.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), channel: u8, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(payload.len() + 5);
    frame.push(channel);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(payload);
    stream.write_all(&frame).await?;
    stream.flush().await
}
