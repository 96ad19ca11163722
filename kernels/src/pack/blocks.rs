//! Blocks as files hold them.

use super::Kind;

/// A block of one output. What a kind lacks is zero.
#[derive(Debug)]
pub(super) struct Group {
    /// The integers, counted from the least that the kind has.
    pub(super) weights: [u8; 256],
    /// The scale, as the bytes of an f16.
    pub(super) scale: [u8; 2],
    /// The least value, or the scale of least values, as the bytes of an f16.
    pub(super) least: [u8; 2],
    /// Scales of parts of the block, in multiples of its scale.
    pub(super) scales: [u8; 16],
    /// Least values of parts of the block, in multiples of their scale; they are subtracted.
    pub(super) leasts: [u8; 16],
}

impl Group {
    pub(super) const NOTHING: Self = Self {
        weights: [0; 256],
        scale: [0; 2],
        least: [0; 2],
        scales: [0; 16],
        leasts: [0; 16],
    };

    /// Reads a block of exactly the kind's bytes, in place of another of the kind.
    pub(super) fn read(&mut self, kind: Kind, bytes: &[u8]) {
        let half = |at: usize| [bytes[at], bytes[at + 1]];
        let (scale, least) = kind.scales_at();
        self.scale = half(scale);
        if let Some(least) = least {
            self.least = half(least);
        }
        match kind {
            Kind::Q4_0 => self.nibbles(&bytes[2..]),
            Kind::Q4_1 => self.nibbles(&bytes[4..]),
            Kind::Q5_0 => self.fives(&bytes[2..]),
            Kind::Q5_1 => self.fives(&bytes[4..]),
            Kind::Q8_0 => {
                for (weight, byte) in self.weights.iter_mut().zip(&bytes[2..]) {
                    *weight = byte ^ 0x80;
                }
            }
            Kind::Q2_K => {
                for (at, byte) in bytes[..16].iter().enumerate() {
                    self.scales[at] = byte & 0x0f;
                    self.leasts[at] = byte >> 4;
                }
                self.twos(&bytes[16..80]);
            }
            Kind::Q3_K => self.q3_k(bytes),
            Kind::Q4_K => {
                self.sixes(&bytes[4..16]);
                self.long_nibbles(&bytes[16..]);
            }
            Kind::Q5_K => {
                self.sixes(&bytes[4..16]);
                self.long_nibbles(&bytes[48..]);
                for (at, weight) in self.weights.iter_mut().enumerate() {
                    *weight |= (bytes[16 + at % 32] >> (at / 32) & 1) << 4;
                }
            }
            Kind::Q6_K => self.q6_k(bytes),
            Kind::F32 | Kind::F16 | Kind::BF16 => {}
        }
    }

    /// 16 bytes with inputs 0 to 15 in their lower halves, 16 to 31 in their upper ones.
    fn nibbles(&mut self, bytes: &[u8]) {
        for (at, byte) in bytes[..16].iter().enumerate() {
            self.weights[at] = byte & 0x0f;
            self.weights[at + 16] = byte >> 4;
        }
    }

    /// 32 fifth bits, then the nibbles.
    fn fives(&mut self, bytes: &[u8]) {
        self.nibbles(&bytes[4..]);
        for (at, weight) in self.weights[..32].iter_mut().enumerate() {
            *weight |= (bytes[at / 8] >> (at % 8) & 1) << 4;
        }
    }

    /// For each 64 inputs 32 bytes, with the first 32 in their lower halves.
    fn long_nibbles(&mut self, bytes: &[u8]) {
        for (weights, bytes) in self.weights.chunks_exact_mut(64).zip(bytes.chunks_exact(32)) {
            for (at, byte) in bytes.iter().enumerate() {
                weights[at] = byte & 0x0f;
                weights[at + 32] = byte >> 4;
            }
        }
    }

    /// Eight scales and eight least values of 6 bits in 12 bytes.
    fn sixes(&mut self, bytes: &[u8]) {
        for at in 0..4 {
            self.scales[at] = bytes[at] & 0x3f;
            self.leasts[at] = bytes[at + 4] & 0x3f;
            self.scales[at + 4] = bytes[at + 8] & 0x0f | (bytes[at] >> 6) << 4;
            self.leasts[at + 4] = bytes[at + 8] >> 4 | (bytes[at + 4] >> 6) << 4;
        }
    }

    /// For each 128 inputs 32 bytes, with the first 32 in their lowest two bits.
    fn twos(&mut self, bytes: &[u8]) {
        for (at, weight) in self.weights.iter_mut().enumerate() {
            let (half, at) = (at / 128, at % 128);
            *weight = bytes[half * 32 + at % 32] >> (at / 32 * 2) & 3;
        }
    }

    /// 32 bytes of third bits, 64 of the lower two, 16 scales of 6 bits in 12 bytes, counted from -32.
    fn q3_k(&mut self, bytes: &[u8]) {
        self.twos(&bytes[32..96]);
        for (at, weight) in self.weights.iter_mut().enumerate() {
            *weight |= (bytes[at % 32] >> (at / 32) & 1) << 2;
        }
        let packed = &bytes[96..108];
        for (at, scale) in self.scales.iter_mut().enumerate() {
            let low = packed[at % 8] >> (at / 8 * 4) & 0x0f;
            let high = packed[8 + at % 4] >> (at / 4 * 2) & 3;
            *scale = (low | high << 4).wrapping_sub(32);
        }
    }

    /// 128 bytes of low bits, 64 of high ones, 16 scales; each half of the block has half of each.
    fn q6_k(&mut self, bytes: &[u8]) {
        self.scales.copy_from_slice(&bytes[192..208]);
        for (at, weight) in self.weights.iter_mut().enumerate() {
            let (half, at) = (at / 128, at % 128);
            let low = bytes[half * 64 + at % 64] >> (at / 64 * 4) & 0x0f;
            let high = bytes[128 + half * 32 + at % 32] >> (at / 32 * 2) & 3;
            *weight = low | high << 4;
        }
    }
}
