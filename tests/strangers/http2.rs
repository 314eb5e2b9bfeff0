//! HTTP/2 by hand, frame by frame (RFC 9113) with header blocks without Huffman coding (RFC 7541): a library would refuse to send what
//! attackers send.

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;

/// The largest payload of a frame, unless settings allow more.
pub const FRAME_MAX: usize = 16_384;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = Vec::with_capacity(9 + payload.len());
    frame.extend_from_slice(&length[1..]);
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// What a client says first, with the window that it grants the answers of each stream where that is not the default.
pub fn greeting(window: Option<u32>) -> Vec<u8> {
    const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
    let settings = window.map_or(Vec::new(), |window| [&INITIAL_WINDOW_SIZE[..], &window.to_be_bytes()].concat());
    [PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()
}

/// The numbers of a client's streams.
pub fn streams() -> impl Iterator<Item = u32> {
    (1..1 << 31).step_by(2)
}

/// The header block of a GET.
pub fn get(path: &str) -> Vec<u8> {
    const METHOD_GET: u8 = 0x82;
    block(METHOD_GET, path)
}

/// The header block of a POST of JSON.
pub fn post(path: &str, content_length: Option<usize>) -> Vec<u8> {
    const METHOD_POST: u8 = 0x83;
    const CONTENT_LENGTH: usize = 28;
    const CONTENT_TYPE: usize = 31;
    let mut block = block(METHOD_POST, path);
    literal(&mut block, CONTENT_TYPE, "application/json");
    if let Some(length) = content_length {
        literal(&mut block, CONTENT_LENGTH, &length.to_string());
    }
    block
}

fn block(method: u8, path: &str) -> Vec<u8> {
    const SCHEME_HTTP: u8 = 0x86;
    const AUTHORITY: usize = 1;
    const PATH: usize = 4;
    let mut block = vec![method, SCHEME_HTTP];
    literal(&mut block, PATH, path);
    literal(&mut block, AUTHORITY, "relay");
    block
}

/// A field that is not to be remembered, its name by its number in the static table.
fn literal(block: &mut Vec<u8>, name: usize, value: &str) {
    integer(block, 0x00, 4, name);
    string(block, value);
}

/// A field with a name of its own that is not to be remembered.
pub fn unnamed(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0x00);
    string(block, name);
    string(block, value);
}

/// A field to be remembered: from now on one byte, [`LAST_REMEMBERED`], stands for it.
pub fn remembered(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0x40);
    string(block, name);
    string(block, value);
}

/// Number 62, where the fields begin that are not in the static table.
pub const LAST_REMEMBERED: u8 = 0xbe;

fn string(block: &mut Vec<u8>, text: &str) {
    integer(block, 0x00, 7, text.len());
    block.extend_from_slice(text.as_bytes());
}

/// RFC 7541, 5.1: as much as fits into the first byte's last bits, then seven bits a byte.
fn integer(block: &mut Vec<u8>, first: u8, bits: u32, value: usize) {
    let largest = (1 << bits) - 1;
    if value < largest {
        block.push(first | value as u8);
        return;
    }
    block.push(first | largest as u8);
    let mut rest = value - largest;
    while rest >= 128 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}
