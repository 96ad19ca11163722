//! Takes memory until it is killed: plays a process that outgrows its limit, in an image of its own.

use std::time::Duration;

/// Bytes at a time.
const STEP: usize = 1024 * 1024;

fn main() {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    loop {
        // Bytes that are not zero: the kernel gives a page only when it is written.
        taken.push(vec![1; STEP]);
        std::thread::sleep(Duration::from_millis(1));
    }
}
