//! Vectors of 512 and of 256 bits.

use super::vectors::{Vectors, Work};
use crate::TILE;
use crate::level::Instructions;
use crate::line::Line;
#[cfg_attr(
    not(test),
    expect(
        clippy::wildcard_imports,
        reason = "some fifty instructions, whose names tell where they are from"
    )
)]
use std::arch::x86_64::*;

/// # Safety
/// The processor must have what [`Instructions::Avx512`] says.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn with_avx512<W: Work>(work: W) -> W::Output {
    work.run(Avx512(()))
}

/// # Safety
/// The processor must have what [`Instructions::AvxVnni`] says.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn with_avx_vnni<W: Work>(work: W) -> W::Output {
    work.run(Avx2::<true>(()))
}

/// # Safety
/// The processor must have what [`Instructions::Avx2`] says.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn with_avx2<W: Work>(work: W) -> W::Output {
    work.run(Avx2::<false>(()))
}

/// Made only by [`with_avx512`], whose caller proves that the instructions are there.
#[derive(Clone, Copy)]
struct Avx512(());

/// Made only by [`with_avx_vnni`] (true) and [`with_avx2`] (false), whose callers prove that the instructions are there.
/// Outputs 0 to 7 are the first vector, 8 to 15 the second.
#[derive(Clone, Copy)]
struct Avx2<const VNNI: bool>(());

/// Calls an instruction that the type of the receiver proves to be there, or loads and stores within a reference.
macro_rules! proven {
    ($call:expr) => {
        // SAFETY: a value of this type is only made where the processor has the instruction; memory is that of a
        // reference to as many bytes as the instruction reads or writes, and needs no alignment.
        unsafe { $call }
    };
}

impl Vectors for Avx512 {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;
    const ROWS: usize = Instructions::Avx512.rows();

    #[inline(always)]
    fn load(self, line: &Line) -> __m512i {
        proven!(_mm512_loadu_si512(line.0.as_ptr().cast()))
    }

    #[inline(always)]
    fn store(self, bytes: __m512i, line: &mut Line) {
        proven!(_mm512_storeu_si512(line.0.as_mut_ptr().cast(), bytes));
    }

    #[inline(always)]
    fn mask(self, bytes: __m512i, mask: u8) -> __m512i {
        proven!(_mm512_and_si512(bytes, _mm512_set1_epi8(mask.cast_signed())))
    }

    #[inline(always)]
    fn left(self, bytes: __m512i, bits: i32) -> __m512i {
        proven!(_mm512_sll_epi16(bytes, _mm_cvtsi32_si128(bits)))
    }

    #[inline(always)]
    fn right(self, bytes: __m512i, bits: i32) -> __m512i {
        proven!(_mm512_srl_epi16(bytes, _mm_cvtsi32_si128(bits)))
    }

    #[inline(always)]
    fn or(self, one: __m512i, other: __m512i) -> __m512i {
        proven!(_mm512_or_si512(one, other))
    }

    #[inline(always)]
    fn prefetch(self, line: &Line, lines_ahead: usize) {
        let place = std::ptr::from_ref(line).wrapping_add(lines_ahead);
        proven!(_mm_prefetch::<_MM_HINT_T0>(place.cast()));
    }

    #[inline(always)]
    fn start(self, value: u32, bits: i32) -> __m512i {
        proven!(_mm512_sll_epi32(
            _mm512_set1_epi32(value.cast_signed()),
            _mm_cvtsi32_si128(bits)
        ))
    }

    #[inline(always)]
    fn dot(self, sums: __m512i, weights: __m512i, inputs: u32) -> __m512i {
        proven!(_mm512_dpbusd_epi32(
            sums,
            weights,
            _mm512_set1_epi32(inputs.cast_signed())
        ))
    }

    #[inline(always)]
    fn dot_whole(self, sums: __m512i, weights: __m512i, inputs: u32) -> __m512i {
        self.dot(sums, weights, inputs)
    }

    #[inline(always)]
    fn bytes(self, ints: __m512i) -> [u8; TILE] {
        let mut bytes = [0; TILE];
        proven!(_mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(ints)));
        bytes
    }

    #[inline(always)]
    fn total(self, ints: __m512i) -> i32 {
        proven!(_mm512_reduce_add_epi32(ints))
    }

    #[inline(always)]
    fn to_floats(self, ints: __m512i) -> __m512 {
        proven!(_mm512_cvtepi32_ps(ints))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        proven!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn add(self, one: __m512, other: __m512) -> __m512 {
        proven!(_mm512_add_ps(one, other))
    }

    #[inline(always)]
    fn subtract(self, one: __m512, other: __m512) -> __m512 {
        proven!(_mm512_sub_ps(one, other))
    }

    #[inline(always)]
    fn divide(self, one: __m512, other: __m512) -> __m512 {
        proven!(_mm512_div_ps(one, other))
    }

    #[inline(always)]
    fn absolute(self, floats: __m512) -> __m512 {
        proven!(_mm512_abs_ps(floats))
    }

    #[inline(always)]
    fn larger(self, one: __m512, other: __m512) -> __m512 {
        proven!(_mm512_max_ps(one, other))
    }

    #[inline(always)]
    fn smaller(self, one: __m512, other: __m512) -> __m512 {
        proven!(_mm512_min_ps(one, other))
    }

    #[inline(always)]
    fn largest(self, floats: __m512) -> f32 {
        proven!(_mm512_reduce_max_ps(floats))
    }

    #[inline(always)]
    fn unless_below(self, floats: __m512, limit: f32, values: __m512) -> __m512 {
        proven!({
            let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(floats, _mm512_set1_ps(limit));
            _mm512_maskz_mov_ps(kept, values)
        })
    }

    #[inline(always)]
    fn numbers(self, floats: __m512) -> __m512 {
        proven!(_mm512_maskz_mov_ps(
            _mm512_cmp_ps_mask::<_CMP_ORD_Q>(floats, floats),
            floats
        ))
    }

    #[inline(always)]
    fn round(self, floats: __m512) -> __m512i {
        proven!(_mm512_cvtps_epi32(floats))
    }

    #[inline(always)]
    fn power_of_two(self, ints: __m512i) -> __m512 {
        proven!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(
            ints,
            _mm512_set1_epi32(127)
        ))))
    }

    #[inline(always)]
    fn multiply(self, one: __m512, other: __m512) -> __m512 {
        proven!(_mm512_mul_ps(one, other))
    }

    #[inline(always)]
    fn multiply_add(self, one: __m512, other: __m512, sum: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(one, other, sum))
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 2 * TILE]) -> __m512 {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())))
    }

    #[inline(always)]
    fn widen(self, bits: &[u16; TILE]) -> __m512 {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast())))
    }

    #[inline(always)]
    fn narrow(self, floats: __m512, bits: &mut [u16; TILE]) {
        proven!(_mm256_storeu_si256(
            bits.as_mut_ptr().cast(),
            _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(floats)
        ));
    }

    #[inline(always)]
    fn uppers(self, bytes: &[u8; 2 * TILE]) -> __m512 {
        proven!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
            _mm256_loadu_si256(bytes.as_ptr().cast())
        ))))
    }

    #[inline(always)]
    fn unsigned(self, bytes: &[u8; TILE]) -> __m512 {
        proven!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(
            bytes.as_ptr().cast()
        ))))
    }

    #[inline(always)]
    fn signed(self, bytes: &[u8; TILE]) -> __m512 {
        proven!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(
            bytes.as_ptr().cast()
        ))))
    }

    #[inline(always)]
    fn read(self, values: &[f32; TILE]) -> __m512 {
        proven!(_mm512_loadu_ps(values.as_ptr()))
    }

    #[inline(always)]
    fn write(self, floats: __m512, values: &mut [f32; TILE]) {
        proven!(_mm512_storeu_ps(values.as_mut_ptr(), floats));
    }
}

/// Adds to four products of each of eight outputs.
#[inline(always)]
fn dot_256<const VNNI: bool>(sums: __m256i, weights: __m256i, inputs: __m256i) -> __m256i {
    if VNNI {
        proven!(_mm256_dpbusd_avx_epi32(sums, weights, inputs))
    } else {
        // Two products of at most 127 * 127 each fit into 16 bits.
        proven!({
            let pairs = _mm256_maddubs_epi16(weights, inputs);
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
}

impl<const VNNI: bool> Vectors for Avx2<VNNI> {
    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];
    const ROWS: usize = if VNNI {
        Instructions::AvxVnni
    } else {
        Instructions::Avx2
    }
    .rows();

    #[inline(always)]
    fn load(self, line: &Line) -> [__m256i; 2] {
        let [low, high] = [&line.0[..32], &line.0[32..]];
        proven!([
            _mm256_loadu_si256(low.as_ptr().cast()),
            _mm256_loadu_si256(high.as_ptr().cast())
        ])
    }

    #[inline(always)]
    fn store(self, bytes: [__m256i; 2], line: &mut Line) {
        let (low, high) = line.0.split_at_mut(32);
        proven!({
            _mm256_storeu_si256(low.as_mut_ptr().cast(), bytes[0]);
            _mm256_storeu_si256(high.as_mut_ptr().cast(), bytes[1]);
        });
    }

    #[inline(always)]
    fn mask(self, bytes: [__m256i; 2], mask: u8) -> [__m256i; 2] {
        proven!({
            let mask = _mm256_set1_epi8(mask.cast_signed());
            [_mm256_and_si256(bytes[0], mask), _mm256_and_si256(bytes[1], mask)]
        })
    }

    #[inline(always)]
    fn left(self, bytes: [__m256i; 2], bits: i32) -> [__m256i; 2] {
        proven!({
            let bits = _mm_cvtsi32_si128(bits);
            [_mm256_sll_epi16(bytes[0], bits), _mm256_sll_epi16(bytes[1], bits)]
        })
    }

    #[inline(always)]
    fn right(self, bytes: [__m256i; 2], bits: i32) -> [__m256i; 2] {
        proven!({
            let bits = _mm_cvtsi32_si128(bits);
            [_mm256_srl_epi16(bytes[0], bits), _mm256_srl_epi16(bytes[1], bits)]
        })
    }

    #[inline(always)]
    fn or(self, one: [__m256i; 2], other: [__m256i; 2]) -> [__m256i; 2] {
        proven!([_mm256_or_si256(one[0], other[0]), _mm256_or_si256(one[1], other[1])])
    }

    #[inline(always)]
    fn prefetch(self, line: &Line, lines_ahead: usize) {
        let place = std::ptr::from_ref(line).wrapping_add(lines_ahead);
        proven!(_mm_prefetch::<_MM_HINT_T0>(place.cast()));
    }

    #[inline(always)]
    fn start(self, value: u32, bits: i32) -> [__m256i; 2] {
        proven!([_mm256_set1_epi32(value.cast_signed() << bits); 2])
    }

    #[inline(always)]
    fn dot(self, sums: [__m256i; 2], weights: [__m256i; 2], inputs: u32) -> [__m256i; 2] {
        let inputs = proven!(_mm256_set1_epi32(inputs.cast_signed()));
        [
            dot_256::<VNNI>(sums[0], weights[0], inputs),
            dot_256::<VNNI>(sums[1], weights[1], inputs),
        ]
    }

    #[inline(always)]
    fn dot_whole(self, sums: [__m256i; 2], weights: [__m256i; 2], inputs: u32) -> [__m256i; 2] {
        if VNNI {
            return self.dot(sums, weights, inputs);
        }
        // Products with 255 would not fit: the highest bit of weights goes by itself.
        let sums = self.dot(sums, self.mask(weights, 0x7f), inputs);
        self.dot(sums, self.mask(weights, 0x80), inputs)
    }

    #[inline(always)]
    fn bytes(self, ints: [__m256i; 2]) -> [u8; TILE] {
        let mut bytes = [0; TILE];
        proven!({
            let low = _mm256_set1_epi32(0xff);
            let ints = [_mm256_and_si256(ints[0], low), _mm256_and_si256(ints[1], low)];
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(ints[0], ints[1]));
            let packed = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), packed);
        });
        bytes
    }

    #[inline(always)]
    fn total(self, ints: [__m256i; 2]) -> i32 {
        let mut sums = [0; 8];
        proven!(_mm256_storeu_si256(
            sums.as_mut_ptr().cast(),
            _mm256_add_epi32(ints[0], ints[1])
        ));
        (sums[0] + sums[1] + sums[2] + sums[3]) + (sums[4] + sums[5] + sums[6] + sums[7])
    }

    #[inline(always)]
    fn to_floats(self, ints: [__m256i; 2]) -> [__m256; 2] {
        proven!([_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])])
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [__m256; 2] {
        proven!([_mm256_set1_ps(value); 2])
    }

    #[inline(always)]
    fn add(self, one: [__m256; 2], other: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_add_ps(one[0], other[0]), _mm256_add_ps(one[1], other[1])])
    }

    #[inline(always)]
    fn subtract(self, one: [__m256; 2], other: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_sub_ps(one[0], other[0]), _mm256_sub_ps(one[1], other[1])])
    }

    #[inline(always)]
    fn divide(self, one: [__m256; 2], other: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_div_ps(one[0], other[0]), _mm256_div_ps(one[1], other[1])])
    }

    #[inline(always)]
    fn larger(self, one: [__m256; 2], other: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_max_ps(one[0], other[0]), _mm256_max_ps(one[1], other[1])])
    }

    #[inline(always)]
    fn smaller(self, one: [__m256; 2], other: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_min_ps(one[0], other[0]), _mm256_min_ps(one[1], other[1])])
    }

    #[inline(always)]
    fn absolute(self, floats: [__m256; 2]) -> [__m256; 2] {
        proven!({
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, floats[0]), _mm256_andnot_ps(sign, floats[1])]
        })
    }

    #[inline(always)]
    fn largest(self, floats: [__m256; 2]) -> f32 {
        proven!({
            let eight = _mm256_max_ps(floats[0], floats[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }

    #[inline(always)]
    fn unless_below(self, floats: [__m256; 2], limit: f32, values: [__m256; 2]) -> [__m256; 2] {
        proven!({
            let limit = _mm256_set1_ps(limit);
            [
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(floats[0], limit), values[0]),
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(floats[1], limit), values[1]),
            ]
        })
    }

    #[inline(always)]
    fn numbers(self, floats: [__m256; 2]) -> [__m256; 2] {
        proven!([
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_ORD_Q>(floats[0], floats[0]), floats[0]),
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_ORD_Q>(floats[1], floats[1]), floats[1]),
        ])
    }

    #[inline(always)]
    fn round(self, floats: [__m256; 2]) -> [__m256i; 2] {
        proven!([_mm256_cvtps_epi32(floats[0]), _mm256_cvtps_epi32(floats[1])])
    }

    #[inline(always)]
    fn power_of_two(self, ints: [__m256i; 2]) -> [__m256; 2] {
        proven!({
            let bias = _mm256_set1_epi32(127);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(ints[0], bias))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(ints[1], bias))),
            ]
        })
    }

    #[inline(always)]
    fn multiply(self, one: [__m256; 2], other: [__m256; 2]) -> [__m256; 2] {
        proven!([_mm256_mul_ps(one[0], other[0]), _mm256_mul_ps(one[1], other[1])])
    }

    #[inline(always)]
    fn multiply_add(self, one: [__m256; 2], other: [__m256; 2], sum: [__m256; 2]) -> [__m256; 2] {
        proven!([
            _mm256_fmadd_ps(one[0], other[0], sum[0]),
            _mm256_fmadd_ps(one[1], other[1], sum[1])
        ])
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 2 * TILE]) -> [__m256; 2] {
        let [low, high] = [&bytes[..16], &bytes[16..]];
        proven!([
            _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast()))
        ])
    }

    #[inline(always)]
    fn widen(self, bits: &[u16; TILE]) -> [__m256; 2] {
        let [low, high] = [&bits[..8], &bits[8..]];
        proven!([
            _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast()))
        ])
    }

    #[inline(always)]
    fn narrow(self, floats: [__m256; 2], bits: &mut [u16; TILE]) {
        let (low, high) = bits.split_at_mut(8);
        proven!({
            _mm_storeu_si128(
                low.as_mut_ptr().cast(),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(floats[0]),
            );
            _mm_storeu_si128(
                high.as_mut_ptr().cast(),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(floats[1]),
            );
        });
    }

    #[inline(always)]
    fn uppers(self, bytes: &[u8; 2 * TILE]) -> [__m256; 2] {
        let [low, high] = [&bytes[..16], &bytes[16..]];
        proven!({
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(low.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(high.as_ptr().cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        })
    }

    #[inline(always)]
    fn unsigned(self, bytes: &[u8; TILE]) -> [__m256; 2] {
        let [low, high] = [&bytes[..8], &bytes[8..]];
        proven!([
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(low.as_ptr().cast()))),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(high.as_ptr().cast())))
        ])
    }

    #[inline(always)]
    fn signed(self, bytes: &[u8; TILE]) -> [__m256; 2] {
        let [low, high] = [&bytes[..8], &bytes[8..]];
        proven!([
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(low.as_ptr().cast()))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(high.as_ptr().cast())))
        ])
    }

    #[inline(always)]
    fn read(self, values: &[f32; TILE]) -> [__m256; 2] {
        let [low, high] = [&values[..8], &values[8..]];
        proven!([_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())])
    }

    #[inline(always)]
    fn write(self, floats: [__m256; 2], values: &mut [f32; TILE]) {
        let (low, high) = values.split_at_mut(8);
        proven!({
            _mm256_storeu_ps(low.as_mut_ptr(), floats[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), floats[1]);
        });
    }
}
