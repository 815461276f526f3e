//! How requests and answers travel: over TCP behind a header, over a serial line between silences and with a checksum.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{self, Instant},
};
use tokio_serial::{SerialPort as _, SerialStream};

use super::{
    faults::Fault,
    slaves::Slaves,
    speed::{Speed, until},
};

/// After so long without a byte a frame is over, at any speed.
const FRAME_END: Duration = Duration::from_millis(20);

pub(super) async fn serve_tcp(listener: TcpListener, slaves: Arc<Slaves>) -> Result<()> {
    let mut clients = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.context("failed to accept")?;
        clients.spawn(serve_client(client, Arc::clone(&slaves)));
        while clients.try_join_next().is_some() {}
    }
}

async fn serve_client(mut client: TcpStream, slaves: Arc<Slaves>) -> Result<()> {
    client.set_nodelay(true)?;
    loop {
        let mut header = [0; 7];
        client.read_exact(&mut header).await?;
        let [high, low, _, _, length_high, length_low, unit] = header;
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        if !(2..=254).contains(&length) {
            bail!("a frame of {length} bytes");
        }
        let mut request = vec![0; length - 1];
        client.read_exact(&mut request).await?;
        let Some((answer, fault)) = slaves.answer(unit, &request) else { continue };
        if let Some(Fault::Late { milliseconds }) = fault {
            time::sleep(Duration::from_millis(milliseconds)).await;
        }
        let unit = if fault == Some(Fault::WrongUnit) { unit ^ 1 } else { unit };
        let low = if fault == Some(Fault::WrongTransaction) { low ^ 1 } else { low };
        let [length_high, length_low] = u16::try_from(answer.len() + 1)?.to_be_bytes();
        let frame = [&[high, low, 0, 0, length_high, length_low, unit], &answer[..]].concat();
        match fault {
            Some(Fault::Half) => client.write_all(&frame[..frame.len() / 2]).await?,
            Some(Fault::Reset) => {
                client.write_all(&frame[..frame.len() / 2]).await?;
                // Zero seconds: a reset, and not an end.
                client.set_zero_linger()?;
                return Ok(());
            }
            _ => client.write_all(&frame).await?,
        }
    }
}

/// The end of a pseudo-terminal whose other one is at `link`.
pub(super) fn open_pty(link: &Path) -> Result<(SerialStream, SerialStream)> {
    let (ours, theirs) = SerialStream::pair().context("failed to open a pseudo-terminal")?;
    let name = theirs.name().context("the pseudo-terminal has no name")?;
    if link.is_symlink() {
        fs::remove_file(link)?;
    }
    std::os::unix::fs::symlink(&name, link).with_context(|| format!("failed to make {}", link.display()))?;
    Ok((ours, theirs))
}

/// `theirs` is kept open, so that the line outlives whoever uses it.
pub(super) async fn serve_rtu(
    (mut ours, _theirs): (SerialStream, SerialStream),
    speed: Speed,
    slaves: Arc<Slaves>,
) -> Result<()> {
    let (mut frame, mut begun) = (Vec::new(), Instant::now());
    loop {
        let mut buffer = [0; 256];
        let read = if let Ok(read) = time::timeout(FRAME_END, ours.read(&mut buffer)).await {
            read.context("the line is gone")?
        } else {
            // Half a frame, or noise.
            frame.clear();
            ours.read(&mut buffer).await.context("the line is gone")?
        };
        if frame.is_empty() {
            begun = Instant::now();
        }
        frame.extend_from_slice(&buffer[..read]);
        let Some(length) = request_length(&frame) else { continue };
        if frame.len() < length {
            continue;
        }
        let request: Vec<u8> = frame.drain(..length).collect();
        let (body, sum) = request.split_at(length - 2);
        if crc(body).to_le_bytes() != *sum {
            frame.clear();
            continue;
        }
        // The line is as slow as it is said to be, and a pseudo-terminal is not.
        let mut at = begun + speed.characters(length);
        if speed.pace {
            at += speed.silence();
            until(at).await;
        } else {
            time::sleep(speed.characters(length)).await;
        }
        let unit = body[0];
        let Some((answer, fault)) = slaves.answer(unit, &body[1..]) else { continue };
        if let Some(Fault::Late { milliseconds }) = fault {
            let late = Duration::from_millis(milliseconds);
            at += late;
            time::sleep(late).await;
        }
        let unit = if fault == Some(Fault::WrongUnit) { unit ^ 1 } else { unit };
        let mut answer = [&[unit], &answer[..]].concat();
        let sum = crc(&answer) ^ u16::from(fault == Some(Fault::WrongCrc));
        answer.extend(sum.to_le_bytes());
        if fault == Some(Fault::Half) {
            answer.truncate(answer.len() / 2);
        }
        if fault == Some(Fault::Noise) {
            answer.splice(0..0, [0x00, 0xff, 0x55]);
        }
        if speed.pace {
            write_paced(&mut ours, &answer, at, speed).await?;
        } else {
            time::sleep(speed.characters(answer.len())).await;
            ours.write_all(&answer).await.context("the line is gone")?;
        }
    }
}

/// Each byte when it would be there, of a frame that begins at `from`.
async fn write_paced(line: &mut SerialStream, frame: &[u8], from: Instant, speed: Speed) -> Result<()> {
    let mut sent = 0;
    while sent < frame.len() {
        until(from + speed.characters(sent + 1)).await;
        let now = Instant::now();
        // What should be there by now, too, because of a sleep that was too long.
        let due = (sent + 1..=frame.len()).take_while(|&count| from + speed.characters(count) <= now);
        let end = due.last().unwrap_or(sent + 1);
        line.write_all(&frame[sent..end]).await.context("the line is gone")?;
        sent = end;
    }
    Ok(())
}

/// With unit and checksum; `None` if it cannot be told yet.
fn request_length(frame: &[u8]) -> Option<usize> {
    match *frame.get(1)? {
        0x0f | 0x10 => Some(9 + usize::from(*frame.get(6)?)),
        _ => Some(8),
    }
}

/// CRC-16 of Modbus over Serial Line V1.02, 6.2.2.
fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xffff, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xa001 } else { sum >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        // Its example, in 6.2.2.
        assert_eq!(crc(&[0x02, 0x07]), 0x1241);
    }
}
