//! Accesses to memory, by whatever reaches it.
//!
//! The runtime maps the first 4 GiB one to one. What is above is reached through a window of 2 MiB of virtual memory for
//! each CPU.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use gaol_cell::attempt;
use hostile_cell::attempt::{SCRATCH, Use, Width};
use hostile_cell::outcome::Outcome;

use super::{plain, with};

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    fn address(&self) -> u64 {
        &raw const *self as u64
    }
}

static POINTERS: Table = Table::new();
static DIRECTORY: Table = Table::new();

const LARGE: u64 = 2 << 20;
/// Present, writable, and for CPL 3 as well.
const TABLE: u64 = 0b111;
/// The same, a page of 2 MiB, accessed and dirty.
const LARGE_PAGE: u64 = 0xe7;
/// Where the windows are: what the second entry of the topmost table maps.
const WINDOWS: u64 = 1 << 39;
/// Physical addresses that page tables can hold.
const PHYSICAL_END: u64 = 1 << 52;
/// What the runtime maps.
const IDENTICAL_END: u64 = 1 << 32;

/// Maps the 2 MiB around a physical address into the window of CPU `number`; returns where the address is there.
pub fn window(number: u32, physical: u64) -> u64 {
    DIRECTORY.0[number as usize].store(physical & !(LARGE - 1) | LARGE_PAGE, Ordering::Relaxed);
    POINTERS.0[0].store(DIRECTORY.address() | TABLE, Ordering::Relaxed);
    let top: u64;
    // SAFETY: Reading CR3 changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) top, options(nomem, nostack)) };
    let entry = ((top & !0xfff) + 8) as *const AtomicU64;
    // SAFETY: The runtime's topmost table is mapped one to one and writable; its second entry is not in use.
    unsafe { (*entry).store(POINTERS.address() | TABLE, Ordering::Release) };
    let linear = WINDOWS + u64::from(number) * LARGE + physical % LARGE;
    // SAFETY: INVLPG only makes the processor look at the tables again.
    unsafe { asm!("invlpg [{}]", in(reg) linear, options(nostack)) };
    linear
}

fn linear(number: u32, address: u64) -> u64 {
    // What is beyond is a linear address in the first place.
    if (IDENTICAL_END..1 << 40).contains(&address) && address < PHYSICAL_END {
        window(number, address)
    } else {
        address
    }
}

#[repr(C, packed)]
pub struct TablePointer {
    pub limit: u16,
    pub base: u64,
}

fn read(address: u64, width: Width) -> Outcome {
    let mut value = 0_u64;
    // SAFETY: Reading memory that is not Rust's.
    let result = unsafe {
        match width {
            Width::Byte => {
                attempt!("mov {value:l}, [{at}]", at = in(reg) address, value = inout(reg) value)
            }
            Width::Word => {
                attempt!("mov {value:x}, [{at}]", at = in(reg) address, value = inout(reg) value)
            }
            Width::Long => {
                attempt!("mov {value:e}, [{at}]", at = in(reg) address, value = inout(reg) value)
            }
            Width::Quad => {
                attempt!("mov {value}, [{at}]", at = in(reg) address, value = inout(reg) value)
            }
        }
    };
    with(result, || Outcome::Value(value))
}

fn write(address: u64, width: Width, value: u64) -> Outcome {
    // SAFETY: It is not Rust's memory: the table and the generator see to that.
    plain(unsafe {
        match width {
            Width::Byte => {
                attempt!("mov [{at}], {value:l}", at = in(reg) address, value = in(reg) value)
            }
            Width::Word => {
                attempt!("mov [{at}], {value:x}", at = in(reg) address, value = in(reg) value)
            }
            Width::Long => {
                attempt!("mov [{at}], {value:e}", at = in(reg) address, value = in(reg) value)
            }
            Width::Quad => {
                attempt!("mov [{at}], {value}", at = in(reg) address, value = in(reg) value)
            }
        }
    })
}

fn add(address: u64, width: Width, value: u64) -> Outcome {
    // SAFETY: As for `write`.
    plain(unsafe {
        match width {
            Width::Byte => {
                attempt!("lock add [{at}], {value:l}", at = in(reg) address, value = in(reg) value)
            }
            Width::Word => {
                attempt!("lock add [{at}], {value:x}", at = in(reg) address, value = in(reg) value)
            }
            Width::Long => {
                attempt!("lock add [{at}], {value:e}", at = in(reg) address, value = in(reg) value)
            }
            Width::Quad => {
                attempt!("lock add [{at}], {value}", at = in(reg) address, value = in(reg) value)
            }
        }
    })
}

/// Uses memory so. CPU `number` does.
pub fn access(number: u32, address: u64, work: Use) -> Outcome {
    let at = linear(number, address);
    match work {
        Use::Read(width) => read(at, width),
        Use::Write(width, value) => write(at, width, value),
        Use::Add(width, value) => add(at, width, value),
        // SAFETY: As for `write`.
        Use::Fill(bytes) => plain(unsafe {
            attempt!("rep stosb", inout("rdi") at => _, inout("rcx") bytes => _, in("al") 0xa5_u8)
        }),
        // SAFETY: The scratch memory is not Rust's.
        Use::Copy(bytes) => plain(unsafe {
            attempt!("rep movsb", inout("rsi") at => _, inout("rdi") SCRATCH => _, inout("rcx") bytes => _)
        }),
        // SAFETY: The hypervisor stops this CPU. Where it does not, the test has failed, and it does not matter what runs;
        // the same for all that follow.
        Use::Execute => plain(unsafe { attempt!("jmp {at}", at = in(reg) at) }),
        // SAFETY: See above.
        Use::Push => plain(unsafe {
            attempt!(
                "mov {saved}, rsp\nmov rsp, {at}\npush rax\nmov rsp, {saved}",
                at = in(reg) at + 8,
                saved = out(reg) _
            )
        }),
        // SAFETY: See above.
        Use::PageTables => plain(unsafe { attempt!("mov cr3, {at}", at = in(reg) address) }),
        Use::Descriptors => {
            let pointer = TablePointer {
                limit: u16::MAX,
                base: at,
            };
            // SAFETY: See above.
            plain(unsafe {
                attempt!("lgdt [{at}]\nmov ds, {selector:e}", at = in(reg) &raw const pointer, selector = in(reg) 8)
            })
        }
        Use::Interrupts => {
            let pointer = TablePointer {
                limit: u16::MAX,
                base: at,
            };
            // SAFETY: See above.
            plain(unsafe { attempt!("lidt [{at}]\nud2", at = in(reg) &raw const pointer) })
        }
    }
}
