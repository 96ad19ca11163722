//! What comes from outside as an argument elsewhere: the wall clock and randomness.

use rand::Rng as _;
use std::fmt::Write as _;
use std::time::{Instant, SystemTime};

/// Seconds since 1970, for `created` in answers.
pub fn unix_seconds() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// What the wall clock showed at this moment.
pub fn wall_clock(moment: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(moment.elapsed()).unwrap_or(now)
}

/// A seed for a request that names none.
pub fn random_seed() -> u64 {
    rand::rng().next_u64()
}

/// An identifier that no other answer has: `prefix` and 24 hex digits.
pub fn random_id(prefix: &str) -> String {
    let mut id = prefix.to_owned();
    let mut bytes = [0; 12];
    rand::rng().fill_bytes(&mut bytes);
    for byte in bytes {
        write!(id, "{byte:02x}").expect("writing to a String cannot fail");
    }
    id
}
