//! Exceptions: a line on the console and the end of the cell, or a result where the cell expected one ([`attempt!`]).
//!
//! [`attempt!`]: crate::attempt
//!
//! What a CPU attempts is kept at the lower end of its own stack, so that all CPUs of a cell may attempt something at the
//! same time, whatever else they have lost.
//!
//! Invariant: an exception that nobody expected never returns to where it came from.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::start::STACK_SIZE;
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

/// Stacks are aligned to their size: with these bits of an address in a stack one has its lower end.
#[doc(hidden)]
pub const STACK_MASK: i32 = -(STACK_SIZE as i32);

/// What lies at the lower end of a stack.
#[repr(C)]
struct Attempt {
    /// Where to go on after an exception; 0: none is expected.
    resume: AtomicU64,
    /// 1 + vector of the exception that was caught.
    caught: AtomicU64,
}

/// The attempt of the CPU whose stack has `address`.
fn attempt_of(address: u64) -> &'static Attempt {
    let end = address & i64::from(STACK_MASK) as u64;
    // SAFETY: The start code aligns stacks to their size and clears the lower end, which is never pushed to: an overflow
    // of 16 KiB would have destroyed much else. Both fields are atomic.
    unsafe { &*(end as *const Attempt) }
}

const NMI: u64 = 2;
static NMI_HANDLER: AtomicPtr<()> = AtomicPtr::new(null_mut());

/// Registers what is to be called at NMIs, on all CPUs. Without it an NMI ends the cell.
pub fn set_nmi_handler(handler: fn()) {
    NMI_HANDLER.store(handler as *mut (), Ordering::Release);
}

/// Where the exception that was caught last, on any CPU, had come from.
static ADDRESS: AtomicU64 = AtomicU64::new(0);

/// RFLAGS: single-step.
const TRAP_FLAG: u64 = 1 << 8;

/// The instruction pointer that the exception which was caught last had left on the stack.
pub fn address() -> u64 {
    ADDRESS.load(Ordering::Relaxed)
}

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
    let handler = NMI_HANDLER.load(Ordering::Acquire);
    if frame.vector == NMI && !handler.is_null() {
        // SAFETY: Only set_nmi_handler writes there, and it writes a fn().
        let handler: fn() = unsafe { core::mem::transmute::<*mut (), fn()>(handler) };
        return handler();
    }
    let attempt = attempt_of(&raw const *frame as u64);
    let resume = attempt.resume.swap(0, Ordering::Relaxed);
    if resume != 0 {
        attempt.caught.store(frame.vector + 1, Ordering::Relaxed);
        ADDRESS.store(frame.rip, Ordering::Relaxed);
        frame.rflags &= !TRAP_FLAG;
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
    let stack: u64;
    // SAFETY: Reading RSP changes nothing.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack)) };
    let attempt = attempt_of(stack);
    attempt.resume.store(0, Ordering::Relaxed);
    match attempt.caught.swap(0, Ordering::Relaxed) {
        0 => Ok(()),
        caught => Err(Exception {
            vector: (caught - 1) as u8,
        }),
    }
}

/// Executes an instruction that may raise an exception: `attempt!("rdmsr", in("ecx") number, out("eax") _, …)`. The
/// operands are those of `asm!`, with names or registers. Gives `Err` with the exception, in which case the outputs mean
/// nothing.
///
/// It expands to `asm!`, so it stands in an `unsafe` block with the reason why the instruction is harmless.
#[macro_export]
macro_rules! attempt {
    ($instruction:expr $(, $($operands:tt)*)?) => {{
        ::core::arch::asm!(
            "mov {end}, rsp",
            "and {end}, {mask}",
            "lea {resume}, [rip + 77f]",
            "mov [{end}], {resume}",
            $instruction,
            "77:",
            end = out(reg) _,
            resume = out(reg) _,
            mask = const $crate::exceptions::STACK_MASK,
            $($($operands)*)?
        );
        $crate::exceptions::finish_attempt()
    }};
}
