//! What a hypercall asks for, and whether the caller may: plain logic.
//!
//! Invariant: a cell never gets a [`Request`] that is the management's, and a program in user mode gets none at all.
//! Numbers of cells and CPUs are allegations still: whoever serves a request looks for them.
#![forbid(unsafe_code)]

use gaol_abi::hypercall::{CpuInfoType, DESTROY_FORCE, Errno, Hypercall, InfoType, InjectedFault};

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// A CPU of the root cell.
    pub is_root: bool,
    /// The current privilege level.
    pub privilege_level: u8,
    /// In 64-bit mode arguments and results are 64 bits wide, else 32.
    pub is_wide: bool,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Give the machine back; the number of CPUs that call.
    Disable(u64),
    /// Create a cell from the configuration at this address.
    Create {
        /// Guest-physical address.
        address: u64,
        /// Other cells' locks don't count.
        force: bool,
    },
    /// Start a cell.
    Start(u64),
    /// Stop a cell and let the root load it.
    SetLoadable {
        /// The cell.
        id: u64,
        /// Without asking it.
        force: bool,
    },
    /// Destroy a cell.
    Destroy {
        /// The cell.
        id: u64,
        /// Without asking it; other cells' locks don't count.
        force: bool,
    },
    /// A number about the hypervisor.
    Info(InfoType),
    /// State of a cell.
    State(u64),
    /// A number about a CPU.
    CpuInfo {
        /// The CPU.
        cpu: u64,
        /// A [`CpuInfoType`].
        kind: u64,
    },
    /// Print a character.
    Print(u8),
    /// Clear the next piece of a cell's memory.
    Scrub(u64),
    /// Look at a cell's heartbeat.
    Watch(u64),
    /// Linux panics.
    RootFailed,
    /// Fail on this CPU, where the launch has permitted that.
    Fail(InjectedFault),
}

impl Request {
    /// Whether only the root cell may ask for it.
    #[must_use]
    pub const fn is_management(&self) -> bool {
        !matches!(
            self,
            Self::Info(_) | Self::CpuInfo { .. } | Self::Print(_) | Self::Fail(_)
        )
    }
}

/// Reads the registers RAX, RDI and RSI of a caller.
///
/// # Errors
/// What the caller is answered.
pub fn decode(caller: Caller, rax: u64, rdi: u64, rsi: u64) -> Result<Request, Errno> {
    if caller.privilege_level != 0 {
        return Err(Errno::NotPermitted);
    }
    let mask = if caller.is_wide {
        u64::MAX
    } else {
        0xffff_ffff
    };
    let (first, second) = (rdi & mask, rsi & mask);
    let force = second & DESTROY_FORCE != 0;
    let request = match Hypercall(rax as u32) {
        Hypercall::Disable => Request::Disable(first),
        Hypercall::CellCreate => Request::Create {
            address: first,
            force,
        },
        Hypercall::CellStart => Request::Start(first),
        Hypercall::CellSetLoadable => Request::SetLoadable { id: first, force },
        Hypercall::CellDestroy => Request::Destroy { id: first, force },
        Hypercall::GetInfo => Request::Info(InfoType(first)),
        Hypercall::CellGetState => Request::State(first),
        Hypercall::CpuGetInfo => Request::CpuInfo {
            cpu: first,
            kind: second,
        },
        Hypercall::DebugConsolePutc => Request::Print(first as u8),
        Hypercall::Scrub => Request::Scrub(first),
        Hypercall::Watchdog => Request::Watch(first),
        Hypercall::RootFailed => Request::RootFailed,
        Hypercall::InjectFault => Request::Fail(InjectedFault(first)),
        _ => return Err(Errno::NoSystemCall),
    };
    if request.is_management() && !caller.is_root {
        return Err(Errno::NotPermitted);
    }
    Ok(request)
}

/// What goes into RAX.
#[inline(always)]
#[must_use]
pub const fn result(value: i64, is_wide: bool) -> u64 {
    if is_wide {
        value as u64
    } else {
        value as u64 & 0xffff_ffff
    }
}

/// The negative result of an error.
#[inline(always)]
#[must_use]
pub const fn error(errno: Errno) -> i64 {
    (errno.0 as i64).wrapping_neg()
}

/// Which of Jailhouse's counters a [`CpuInfoType`] asks for, if it is one.
#[must_use]
pub fn counter_number(kind: u64) -> Option<u64> {
    kind.checked_sub(CpuInfoType::StatisticsBase.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOT: Caller = Caller {
        is_root: true,
        privilege_level: 0,
        is_wide: true,
    };
    const CELL: Caller = Caller {
        is_root: false,
        ..ROOT
    };

    #[test]
    fn cells_have_what_jailhouse_gives_them() {
        for number in (0..0x1_0000).chain(u32::MAX - 16..=u32::MAX) {
            let root = decode(ROOT, u64::from(number), 3, 1);
            let cell = decode(CELL, u64::from(number), 3, 1);
            let exists = number < 9 || (0x101..=0x103).contains(&number) || number == 0x1f0;
            assert_eq!(root.is_ok(), exists, "{number:#x}");
            match number {
                // The last one is for tests, and refused by who serves it.
                5 | 7 | 8 | 0x1f0 => assert_eq!(cell, root),
                _ if exists => assert_eq!(cell, Err(Errno::NotPermitted)),
                _ => assert_eq!(cell, Err(Errno::NoSystemCall)),
            }
        }
    }

    proptest! {
        #[test]
        fn user_mode_asks_for_nothing(is_root: bool, level in 1u8..4, is_wide: bool, rax: u64) {
            let caller = Caller { is_root, privilege_level: level, is_wide };
            prop_assert_eq!(decode(caller, rax % 0x104, 0, 0), Err(Errno::NotPermitted));
        }

        #[test]
        fn narrow_callers_have_narrow_arguments(rax in 0u64..0x104, rdi: u64, rsi: u64) {
            let narrow = Caller { is_wide: false, ..ROOT };
            let cut = |value: u64| value & 0xffff_ffff;
            prop_assert_eq!(decode(narrow, rax, rdi, rsi), decode(ROOT, rax, cut(rdi), cut(rsi)));
            prop_assert_eq!(decode(ROOT, rax | rdi << 32, rdi, rsi), decode(ROOT, rax, rdi, rsi));
        }
    }

    #[test]
    fn results_are_as_wide_as_the_caller() {
        let refused = error(Errno::NotPermitted);
        assert_eq!(result(refused, true), u64::MAX);
        assert_eq!(result(refused, false), 0xffff_ffff);
        assert_eq!(result(3, false), 3);
    }
}
