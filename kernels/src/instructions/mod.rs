//! The instructions of each level, behind one trait: what is written against [`Vectors`] once is built for all of them.

mod portable;
mod vectors;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use vectors::{Vectors, Work};

use crate::Level;
#[cfg(target_arch = "x86_64")]
use crate::level::Instructions;

impl Level {
    /// Does some work with the instructions of this level.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        match self.instructions() {
            // SAFETY: a level is only made where the processor has its instructions.
            Instructions::Avx512 => unsafe { x86::with_avx512(work) },
            // SAFETY: as above.
            Instructions::AvxVnni => unsafe { x86::with_avx_vnni(work) },
            // SAFETY: as above.
            Instructions::Avx2 => unsafe { x86::with_avx2(work) },
            Instructions::Portable => work.run(portable::Loops),
        }
    }

    /// Does some work with the instructions of this level.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        work.run(portable::Loops)
    }
}
