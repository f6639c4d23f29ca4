//! WebSocket frames (RFC 6455) as far as a forwarded port needs them: client frames are masked and
//! unfragmented, server frames are unmasked and may be fragmented.

use std::io;

/// The largest payload of a server frame, in bytes. The API server sends frames as it reads, some
/// 32 KiB at a time.
const MAX_PAYLOAD: u64 = 1024 * 1024;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: Opcode,
    pub payload: Vec<u8>,
}

/// Encodes a client frame.
pub fn encode(opcode: Opcode, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![FINAL | opcode as u8];
    match payload.len() {
        short @ ..=125 => frame.push(MASKED | short as u8),
        medium @ ..=0xffff => {
            frame.push(MASKED | 126);
            frame.extend((medium as u16).to_be_bytes());
        }
        long => {
            frame.push(MASKED | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    let masked = payload.iter().zip(mask.iter().cycle());
    frame.extend(masked.map(|(byte, mask)| byte ^ mask));
    frame
}

/// Removes the first server frame from `buffer`. `None`: it is incomplete.
pub fn decode(buffer: &mut Vec<u8>) -> io::Result<Option<Frame>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let [first, second, rest @ ..] = buffer.as_slice() else {
        return Ok(None);
    };
    let opcode = match first & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        other => return Err(wrong(&format!("a frame of kind {other}"))),
    };
    if second & MASKED != 0 {
        return Err(wrong("a masked frame from a server"));
    }
    let (length, size) = match second {
        126 => match rest {
            [a, b, ..] => (u64::from(u16::from_be_bytes([*a, *b])), 2),
            _ => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(bytes) => (u64::from_be_bytes(*bytes), 8),
            None => return Ok(None),
        },
        short => (u64::from(*short), 0),
    };
    if length > MAX_PAYLOAD {
        return Err(wrong(&format!("a frame of {length} bytes")));
    }
    let (start, end) = (2 + size, 2 + size + length as usize);
    if buffer.len() < end {
        return Ok(None);
    }
    let payload = buffer[start..end].to_vec();
    buffer.drain(..end);
    Ok(Some(Frame { opcode, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server frame.
    fn of_server(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut frame = encode(opcode, payload, [0; 4]);
        let mask = frame.len() - payload.len() - 4;
        frame.drain(mask..mask + 4);
        frame[1] &= !MASKED;
        frame
    }

    #[test]
    fn frames_of_every_length_are_decoded_however_they_are_split() {
        for length in [0, 1, 125, 126, 0xffff, 0x1_0000] {
            let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let sent = of_server(Opcode::Binary, &payload);
            let (first, last) = sent.split_at(sent.len() - 1);
            let mut buffer = first.to_vec();
            assert_eq!(decode(&mut buffer).unwrap(), None);
            buffer.extend(last);
            buffer.extend(b"next");
            let opcode = Opcode::Binary;
            let expected = Frame { opcode, payload };
            assert_eq!(decode(&mut buffer).unwrap(), Some(expected));
            assert_eq!(buffer, b"next");
        }
    }

    #[test]
    fn a_client_masks_as_in_the_example_of_the_specification() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let expected = [
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        assert_eq!(encode(Opcode::Text, b"Hello", mask), expected);
    }

    #[test]
    fn an_invalid_server_frame_is_an_error() {
        for wrong in [
            &[0x83, 0][..],
            &[0x82, 0x80],
            &[0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0],
        ] {
            assert!(decode(&mut wrong.to_vec()).is_err(), "{wrong:?}");
        }
        for short in [&[][..], &[0x82], &[0x82, 126, 1], &[0x82, 127, 0, 0]] {
            assert_eq!(decode(&mut short.to_vec()).unwrap(), None, "{short:?}");
        }
    }
}
