//! Which instructions are used.

use std::fmt;

/// A set of instructions that this processor has. A value is the proof of it: there is no way to one that it lacks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Level(Instructions);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Instructions {
    /// Vectors of 512 bits with products of 8-bit integers (AVX-512 F, BW, VNNI).
    Avx512,
    /// Vectors of 256 bits with products of 8-bit integers (AVX2, AVX-VNNI).
    AvxVnni,
    /// Vectors of 256 bits (AVX2, FMA, F16C).
    Avx2,
    /// What the compiler makes of plain loops.
    Portable,
}

impl Level {
    /// Plain loops, on every processor: what the others are compared with.
    pub const PORTABLE: Self = Self(Instructions::Portable);

    /// The fastest of this processor.
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// All that this processor has, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let has_256 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let has_512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni");
            if has_256 && has_512 {
                levels.push(Self(Instructions::Avx512));
            }
            if has_256 && is_x86_feature_detected!("avxvnni") {
                levels.push(Self(Instructions::AvxVnni));
            }
            if has_256 {
                levels.push(Self(Instructions::Avx2));
            }
        }
        levels.push(Self::PORTABLE);
        levels
    }

    /// The level of this name, if this processor has it.
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|level| level.name() == name)
    }

    /// Its name in reports: `avx512`, `avxvnni`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Instructions::Avx512 => "avx512",
            Instructions::AvxVnni => "avxvnni",
            Instructions::Avx2 => "avx2",
            Instructions::Portable => "portable",
        }
    }

    pub(crate) fn instructions(self) -> Instructions {
        self.0
    }
}

impl Instructions {
    /// Rows of activations that are computed together: as many as the registers have room for.
    pub(crate) const fn rows(self) -> usize {
        match self {
            Self::Avx512 => 8,
            Self::AvxVnni | Self::Avx2 => 2,
            Self::Portable => 4,
        }
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
