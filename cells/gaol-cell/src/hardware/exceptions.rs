//! Exceptions: a line on the console and the end of the cell, or a result where the cell expected one ([`attempt!`]).
//!
//! [`attempt!`]: crate::attempt
//!
//! Invariant: an exception that nobody expected never returns to where it came from.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::registers::exception_name;

/// An exception that [`attempt!`](crate::attempt) caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
}

impl core::fmt::Display for Exception {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let name = exception_name(self.vector);
        write!(f, "exception {} ({name})", self.vector)
    }
}

/// Where to go on after an exception; 0: none is expected. The first CPU's only: the others may not `attempt!`.
#[doc(hidden)]
pub static RESUME: AtomicU64 = AtomicU64::new(0);
/// 1 + vector of the exception that was caught.
static CAUGHT: AtomicU64 = AtomicU64::new(0);

/// What an exception leaves on the stack, and the entry code pushed before it.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Frame {
    scratch: [u64; 9],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Called by the entry code of vectors 0 to 31.
pub(super) extern "C" fn exception_entered(frame: &mut Frame) {
    let resume = RESUME.swap(0, Ordering::Relaxed);
    if resume != 0 {
        CAUGHT.store(frame.vector + 1, Ordering::Relaxed);
        frame.rip = resume;
        return;
    }
    let exception = Exception {
        vector: frame.vector as u8,
    };
    let cr2: u64;
    // SAFETY: Reading CR2 changes nothing.
    unsafe { core::arch::asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack)) };
    panic!(
        "{exception} at RIP {:#x}, error code {:#x}, CR2 {cr2:#x}, RSP {:#x}, RFLAGS {:#x}",
        frame.rip, frame.error_code, frame.rsp, frame.rflags
    );
}

/// The end of an attempt.
#[doc(hidden)]
pub fn finish_attempt() -> Result<(), Exception> {
    RESUME.store(0, Ordering::Relaxed);
    match CAUGHT.swap(0, Ordering::Relaxed) {
        0 => Ok(()),
        caught => Err(Exception {
            vector: (caught - 1) as u8,
        }),
    }
}

/// Executes an instruction that may raise an exception: `attempt!("rdmsr", in("ecx") number, out("eax") _, …)`. The
/// operands are those of `asm!`, with names or registers. Gives `Err` with the exception, in which case the outputs mean nothing. On the first CPU
/// only.
///
/// It expands to `asm!`, so it stands in an `unsafe` block with the reason why the instruction is harmless.
#[macro_export]
macro_rules! attempt {
    ($instruction:expr $(, $($operands:tt)*)?) => {{
        ::core::arch::asm!(
            "lea {resume}, [rip + 77f]",
            "mov [rip + {resume_cell}], {resume}",
            $instruction,
            "77:",
            resume = out(reg) _,
            resume_cell = sym $crate::exceptions::RESUME,
            $($($operands)*)?
        );
        $crate::exceptions::finish_attempt()
    }};
}
