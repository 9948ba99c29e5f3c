//! Restarting a CPU whose APIC can't be enabled again by itself.
//!
//! Such a CPU has left operation and halts. It gets a real INIT and a real startup IPI, to a trampoline on a page
//! below 1 MiB that is borrowed for the moment: saved before, restored after. The trampoline needs a page table below
//! 4 GiB that maps it at its own address; everything else is the CPU's private table. (Bochs needs this; hardware is
//! expected to enable its APIC again, and never comes here.)

use core::arch::{global_asm, naked_asm};
use core::sync::atomic::Ordering;

use gaol_abi::outcome::Reason;

use crate::cpu::{CpuShared, Events, PerCpu, events, private};
use crate::device::apic;
use crate::error::{Blame, Failure};
use crate::launch::parameters;
use crate::memory::address::HostPhysical;
use crate::memory::page_table::TableMemory;
use crate::processor::{cr4, pause, read_cr4, time_stamp};
use crate::region::{self, LinearTables};
use crate::system::{Machinery, release, zeroed_frame};
use crate::trace::public;

// The trampoline, copied to the low page: real mode to long mode. Three values are patched in at `gaol_trampoline_values`:
// the CR3 of the trampoline's own table, the CR3 of the private table, and the entry point.
global_asm!(
    ".section .rodata.trampoline, \"a\"",
    ".balign 16",
    ".globl gaol_trampoline",
    "gaol_trampoline:",
    ".code16",
    "cli",
    "movw %cs, %ax",
    "movw %ax, %ds",
    "xorl %ebx, %ebx",
    "movw %ax, %bx",
    "shll $4, %ebx",
    // The GDT's base and the far pointer depend on where the page is.
    "leal (gaol_trampoline_gdt - gaol_trampoline)(%ebx), %eax",
    "movl %eax, (gaol_trampoline_gdtr - gaol_trampoline + 2)",
    "leal (gaol_trampoline_long - gaol_trampoline)(%ebx), %eax",
    "movl %eax, (gaol_trampoline_target - gaol_trampoline)",
    "lgdtl (gaol_trampoline_gdtr - gaol_trampoline)",
    "movl %cr4, %eax",
    "orl $0x20, %eax",
    "movl %eax, %cr4",
    "movl (gaol_trampoline_values - gaol_trampoline), %eax",
    "movl %eax, %cr3",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x900, %eax",
    "wrmsr",
    "movl $0x80010021, %eax",
    "movl %eax, %cr0",
    "ljmpl *(gaol_trampoline_target - gaol_trampoline)",
    ".code64",
    "gaol_trampoline_long:",
    "movq (gaol_trampoline_values - gaol_trampoline + 8)(%rbx), %rdi",
    "movq (gaol_trampoline_values - gaol_trampoline + 16)(%rbx), %rax",
    "jmpq *%rax",
    ".balign 8",
    "gaol_trampoline_gdt:",
    ".quad 0, 0, 0x00af9b000000ffff",
    "gaol_trampoline_gdtr:",
    ".word 23",
    ".long 0",
    ".balign 8",
    "gaol_trampoline_target:",
    ".long 0",
    ".word 0x10",
    ".balign 8",
    ".globl gaol_trampoline_values",
    "gaol_trampoline_values:",
    ".quad 0, 0, 0",
    ".globl gaol_trampoline_end",
    "gaol_trampoline_end:",
    ".previous",
    options(att_syntax)
);

unsafe extern "C" {
    safe static gaol_trampoline: u8;
    safe static gaol_trampoline_values: u8;
    safe static gaol_trampoline_end: u8;
}

/// Behind the trampoline, at the image's own address: RDI is the CR3 of the private table.
#[unsafe(naked)]
extern "sysv64" fn restart_entry() {
    naked_asm!(
        "mov cr3, rdi",
        "mov rsp, {stack}",
        "xor ebp, ebp",
        "call {code}",
        "ud2",
        stack = const private::STACK_END as i64,
        code = sym events::restarted,
    )
}

fn set_entry(table: HostPhysical, index: usize, value: u64) {
    if let Some(slot) = LinearTables.entries(table).get(index) {
        slot.store(value, Ordering::Release);
    }
}

/// The trampoline's page table: the first 2 MiB at their own addresses, and what the private table has at the top.
struct Tables([HostPhysical; 3]);

impl Tables {
    fn new(machinery: &mut Machinery, private_root: HostPhysical) -> Result<Self, Failure> {
        let mut frames = [HostPhysical::ZERO; 3];
        for index in 0..frames.len() {
            match zeroed_frame(&mut machinery.pool) {
                Ok(frame) => frames
                    .iter_mut()
                    .skip(index)
                    .take(1)
                    .for_each(|slot| *slot = frame),
                Err(failure) => {
                    frames
                        .iter()
                        .take(index)
                        .for_each(|frame| release(&mut machinery.pool, *frame));
                    return Err(failure);
                }
            }
        }
        let [root, pointers, directory] = frames;
        let (table, large) = (3, 0x83);
        set_entry(root, 0, pointers.as_u64() | table);
        set_entry(pointers, 0, directory.as_u64() | table);
        set_entry(directory, 0, large);
        let top = LinearTables
            .entries(private_root)
            .get(511)
            .map_or(0, |entry| entry.load(Ordering::Acquire));
        set_entry(root, 511, top);
        Ok(Self(frames))
    }

    fn release(self, machinery: &mut Machinery) {
        self.0
            .iter()
            .for_each(|frame| release(&mut machinery.pool, *frame));
    }
}

/// Room for the trampoline's code and values.
const TRAMPOLINE_BYTES: usize = 256;

fn trampoline(values: [u64; 3]) -> Option<[u8; TRAMPOLINE_BYTES]> {
    let start = &raw const gaol_trampoline as u64;
    let length = (&raw const gaol_trampoline_end as u64).checked_sub(start)?;
    let values_at = (&raw const gaol_trampoline_values as u64).checked_sub(start)?;
    // SAFETY: the bytes between the two symbols are in this image's read-only data.
    let code = unsafe { core::slice::from_raw_parts(start as *const u8, length as usize) };
    let mut page = [0; TRAMPOLINE_BYTES];
    page.get_mut(..code.len())?.copy_from_slice(code);
    for (index, value) in values.iter().enumerate() {
        let at = (values_at as usize).checked_add(index.checked_mul(8)?)?;
        page.get_mut(at..at.checked_add(8)?)?
            .copy_from_slice(&value.to_le_bytes());
    }
    Some(page)
}

/// Cycles between INIT and startup IPI: 10 ms, as hardware of old wants it, is the time stamp counter's kHz times 10.
fn settle() {
    let start = time_stamp();
    // The CPU halts with interrupts off; a tenth of a millisecond is ample where this is needed at all.
    let cycles = u64::from(parameters::tsc_khz()) / 10;
    while time_stamp().wrapping_sub(start) < cycles {
        pause();
    }
}

/// Restarts CPU `index`, which halts in `events::wait_for_restart`, and waits until it has joined the root.
pub fn restart(
    cpu: &PerCpu,
    target: &CpuShared,
    index: u32,
    saved: &mut [u8; 4096],
    machinery: &mut Machinery,
) -> Result<(), Failure> {
    let failed = || Failure::hardware(Reason::ApicMode, u64::from(index));
    let low_page = parameters::low_page();
    // The trampoline enters long mode with four levels.
    let five_levels = read_cr4() & cr4::LA57 != 0;
    if low_page == 0
        || low_page >= 0x10_0000
        || region::physical().as_u64() >> 32 != 0
        || five_levels
    {
        return Err(failed());
    }
    let begin = time_stamp();
    let private_root = HostPhysical::new(target.private_root.load(Ordering::Acquire));
    let tables = Tables::new(machinery, private_root)?;
    let [root, ..] = tables.0;
    let Some(page) = trampoline([
        root.as_u64(),
        private_root.as_u64(),
        restart_entry as *const () as u64,
    ]) else {
        tables.release(machinery);
        return Err(failed());
    };
    let place = HostPhysical::new(low_page);
    cpu.windows.read_page(place, saved);
    cpu.windows.write(place, &page);
    let apic_id = target.apic_id.load(Ordering::Relaxed);
    apic::send_init(cpu, apic_id);
    settle();
    apic::send_startup(cpu, apic_id, (low_page >> 12) as u8);
    let start = time_stamp();
    let mut outcome = Ok(());
    while !target.has_served(Events::JOIN) {
        if time_stamp().wrapping_sub(start) > parameters::deadline_cycles() {
            // It waits for another startup IPI then, and runs nothing of what is taken away below.
            apic::send_init(cpu, apic_id);
            settle();
            outcome = Err(Failure::timed_out(
                Blame::Hardware,
                Reason::CpuDidNotStop,
                u64::from(index),
            ));
            break;
        }
        pause();
    }
    cpu.windows.write(place, saved);
    tables.release(machinery);
    public::set_restart_cycles(time_stamp().wrapping_sub(begin));
    outcome
}
