//! Code that the compiler builds for the vector widths of several processors; the widest that this one has runs.

use pulp::{Arch, Simd, WithSimd};

/// Runs `work`, a closure marked `#[inline(always)]` that calls nothing that is not inlined: only what becomes part of
/// it is built anew for each width.
pub(super) fn widest<R>(work: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Work(work))
}

struct Work<F>(F);

// Not `FnOnce`: such a call goes by a function of its own, which is built for the narrowest vectors; nor may this be
// anything but a part of its caller.
impl<R, F: FnMut() -> R> WithSimd for Work<F> {
    type Output = R;

    #[expect(clippy::inline_always, reason = "see above")]
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}
