//! Generated names in the style of Kubernetes: `web-6d4cf56db6-x7vbk`.

use rand::RngExt;
use serde::Serialize;

/// The alphabet of Kubernetes' generated names: without vowels, so that no words appear, and
/// without look-alikes.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
const HASH_LENGTH: usize = 10;
/// The longest pod name that is a valid host name.
const MAX_HOST_NAME: usize = 63;

/// A hash of everything that distinguishes the pods of a workload.
pub fn template_hash(template: &impl Serialize) -> String {
    // Maps are ordered, so equal templates serialize equally.
    let text = serde_json::to_vec(template).unwrap_or_default();
    let mut hash = fnv1a(&text);
    (0..HASH_LENGTH)
        .map(|_| {
            let letter = LETTERS[(hash % LETTERS.len() as u64) as usize];
            hash /= LETTERS.len() as u64;
            char::from(letter)
        })
        .collect()
}

/// A name for a new pod of a Deployment.
pub fn pod_name(workload: &str, hash: &str) -> String {
    let mut random = rand::rng();
    let suffix: String = (0..SUFFIX_LENGTH)
        .map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]))
        .collect();
    let room = MAX_HOST_NAME - HASH_LENGTH - SUFFIX_LENGTH - 2;
    let workload = workload.get(..room).unwrap_or(workload);
    format!("{workload}-{hash}-{suffix}")
}

/// A random UUID.
pub fn uid() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_templates_have_equal_hashes_and_different_ones_differ() {
        let one = template_hash(&("image", 1));
        assert_eq!(one, template_hash(&("image", 1)));
        assert_ne!(one, template_hash(&("image", 2)));
        assert_eq!(one.len(), HASH_LENGTH);
    }

    #[test]
    fn pod_names_are_kubernetes_like_unique_and_fit_into_a_host_name() {
        let (a, b) = (pod_name("web", "6d4cf56db6"), pod_name("web", "6d4cf56db6"));
        assert!(a.starts_with("web-6d4cf56db6-") && a.len() == 20, "{a}");
        assert_ne!(a, b);
        assert!(pod_name(&"long".repeat(60), "6d4cf56db6").len() <= MAX_HOST_NAME);
    }

    #[test]
    fn uids_are_random_uuids() {
        let uid = uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert_ne!(uid, super::uid());
    }
}
