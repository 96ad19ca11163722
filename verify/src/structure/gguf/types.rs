//! How GGUF packs the values of a tensor.

use std::fmt;

/// Defines the enum, the codes and the block layout in one table, so that they cannot drift apart.
macro_rules! tensor_types {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal, $elements:literal, $bytes:literal;)*) => {
        /// The type of a tensor: its name in the format, its block's values and bytes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum TensorType { $($(#[$doc])* $name,)* }

        impl TensorType {
            /// Every type of the format that is in use.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The type of a code in a file.
            pub fn from_code(code: u32) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// The code in a file.
            pub fn code(self) -> u32 {
                match self { $(Self::$name => $code,)* }
            }

            /// The name as it is usually written.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Values in one block.
            pub fn block_elements(self) -> usize {
                match self { $(Self::$name => $elements,)* }
            }

            /// Bytes of one block.
            pub fn block_bytes(self) -> usize {
                match self { $(Self::$name => $bytes,)* }
            }
        }
    };
}

tensor_types! {
    /// 32-bit float.
    F32 = 0, "F32", 1, 4;
    /// 16-bit float.
    F16 = 1, "F16", 1, 2;
    /// 4 bits, one scale per 32.
    Q4_0 = 2, "Q4_0", 32, 18;
    /// 4 bits, scale and minimum per 32.
    Q4_1 = 3, "Q4_1", 32, 20;
    /// 5 bits, one scale per 32.
    Q5_0 = 6, "Q5_0", 32, 22;
    /// 5 bits, scale and minimum per 32.
    Q5_1 = 7, "Q5_1", 32, 24;
    /// 8 bits, one scale per 32.
    Q8_0 = 8, "Q8_0", 32, 34;
    /// 8 bits, scale and sum per 32.
    Q8_1 = 9, "Q8_1", 32, 36;
    /// 2 bits, super-blocks of 256.
    Q2K = 10, "Q2_K", 256, 84;
    /// 3 bits, super-blocks of 256.
    Q3K = 11, "Q3_K", 256, 110;
    /// 4 bits, super-blocks of 256.
    Q4K = 12, "Q4_K", 256, 144;
    /// 5 bits, super-blocks of 256.
    Q5K = 13, "Q5_K", 256, 176;
    /// 6 bits, super-blocks of 256.
    Q6K = 14, "Q6_K", 256, 210;
    /// 8 bits, super-blocks of 256.
    Q8K = 15, "Q8_K", 256, 292;
    /// 2.06 bits, by a table.
    Iq2Xxs = 16, "IQ2_XXS", 256, 66;
    /// 2.31 bits, by a table.
    Iq2Xs = 17, "IQ2_XS", 256, 74;
    /// 3.06 bits, by a table.
    Iq3Xxs = 18, "IQ3_XXS", 256, 98;
    /// 1.56 bits, by a table.
    Iq1S = 19, "IQ1_S", 256, 50;
    /// 4.5 bits, by a table.
    Iq4Nl = 20, "IQ4_NL", 32, 18;
    /// 3.44 bits, by a table.
    Iq3S = 21, "IQ3_S", 256, 110;
    /// 2.5 bits, by a table.
    Iq2S = 22, "IQ2_S", 256, 82;
    /// 4.25 bits, by a table.
    Iq4Xs = 23, "IQ4_XS", 256, 136;
    /// 8-bit integer.
    I8 = 24, "I8", 1, 1;
    /// 16-bit integer.
    I16 = 25, "I16", 1, 2;
    /// 32-bit integer.
    I32 = 26, "I32", 1, 4;
    /// 64-bit integer.
    I64 = 27, "I64", 1, 8;
    /// 64-bit float.
    F64 = 28, "F64", 1, 8;
    /// 1.75 bits, by a table.
    Iq1M = 29, "IQ1_M", 256, 56;
    /// 16-bit float with the range of 32 bits.
    Bf16 = 30, "BF16", 1, 2;
    /// Three values, 1.69 bits.
    Tq1_0 = 34, "TQ1_0", 256, 54;
    /// Three values, 2.06 bits.
    Tq2_0 = 35, "TQ2_0", 256, 66;
    /// 4-bit float, one scale per 32.
    Mxfp4 = 39, "MXFP4", 32, 17;
}

impl fmt::Display for TensorType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
