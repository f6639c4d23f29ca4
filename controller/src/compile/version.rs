//! A resource's version: the first 64 bits of its content's SHA-256, so that it is the same on
//! every replica and after every restart.

use aws_lc_rs::digest::{SHA256, digest};
use naru_contract::Resource;
use naru_contract::resource::Body;
use prost::Message;

/// Never 0, which means "none" to the contract.
pub fn of(body: &Body) -> u64 {
    let content = Resource {
        name: String::new(),
        version: 0,
        body: Some(body.clone()),
    };
    let hash = digest(&SHA256, &content.encode_to_vec());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_ref()[..8]);
    u64::from_be_bytes(first).max(1)
}
