//! Descriptor tables of the hypervisor, one set a CPU, and its exception handlers.
//!
//! Selectors and IST numbers are Linux' own (CS 0x10, TR 0x40, IST 2 for NMI, 4 for machine check, 1 for double fault):
//! during the world switch each mixture of Linux', the emergency and the hypervisor's tables must serve an NMI.
//!
//! An NMI in the hypervisor only counts itself and arms the preemption timer, so that the next VM entry comes straight
//! back and the exit path looks into the mailbox: this closes the race between the last look and the entry.

use core::arch::{asm, naked_asm};
use core::mem::{offset_of, size_of};

use gaol_abi::handover::TASK_STATE_BYTES;

use crate::cpu::{PRIVATE_BASE, PerCpu, private};
use crate::processor;
use crate::virt;
use crate::virt::contract::Virtualization;

/// Selector of 64-bit code, the same as in Linux.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the task state segment, the same as in Linux.
pub const TASK_SELECTOR: u16 = 0x40;

const DOUBLE_FAULT_IST: u8 = 1;
const NMI_IST: u8 = 2;
const MACHINE_CHECK_IST: u8 = 4;

const VECTORS: usize = 32;
const GDT_ENTRIES: usize = 10;
const IDT_LIMIT: u16 = (size_of::<[[u64; 2]; VECTORS]>() - 1) as u16;
const GDT_LIMIT: u16 = (size_of::<[u64; GDT_ENTRIES]>() - 1) as u16;

/// GDT, TSS and IDT of a CPU.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct DescriptorTables {
    gdt: [u64; GDT_ENTRIES],
    idt: [[u64; 2]; VECTORS],
    task_state: [u8; TASK_STATE_BYTES],
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// An interrupt gate to `handler` on the stack `ist` (0: the present one).
#[must_use]
pub fn gate(handler: u64, ist: u8) -> [u64; 2] {
    let present_interrupt_gate = 0x8e00u64;
    let low = (handler & 0xffff)
        | (u64::from(CODE_SELECTOR) << 16)
        | (u64::from(ist) << 32)
        | (present_interrupt_gate << 32)
        | ((handler & 0xffff_0000) << 32);
    [low, handler >> 32]
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    if let Some(target) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..8)) {
        target.copy_from_slice(&value.to_le_bytes());
    }
}

impl DescriptorTables {
    /// Tables with nothing in them.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            gdt: [0; GDT_ENTRIES],
            idt: [[0; 2]; VECTORS],
            task_state: [0; TASK_STATE_BYTES],
        }
    }

    /// Fills the tables for the place `at` (their own address in the private table).
    pub fn fill(&mut self, at: u64) {
        let task = at.wrapping_add(offset_of!(Self, task_state) as u64);
        let limit = const { TASK_STATE_BYTES as u64 - 1 };
        self.gdt = [0; GDT_ENTRIES];
        let [_, _, code, _, _, _, _, _, task_low, task_high] = &mut self.gdt;
        *code = 0x00af_9b00_0000_ffff;
        *task_low =
            limit | ((task & 0xff_ffff) << 16) | (0x89 << 40) | ((task & 0xff00_0000) << 32);
        *task_high = task >> 32;
        self.task_state.fill(0);
        // IST 1 is at 0x24 of the task state segment (SDM, "64-bit TSS Format").
        for (ist, stack) in [
            (DOUBLE_FAULT_IST, private::DOUBLE_FAULT_STACK_END),
            (NMI_IST, private::NMI_STACK_END),
            (MACHINE_CHECK_IST, private::MACHINE_CHECK_STACK_END),
        ] {
            put(
                &mut self.task_state,
                usize::from(ist).wrapping_mul(8).wrapping_add(0x1c),
                stack,
            );
        }
        for (vector, entry) in self.idt.iter_mut().enumerate() {
            *entry = match vector {
                2 => gate(virt::Current::nmi_handler(), NMI_IST),
                8 => gate(handler(vector), DOUBLE_FAULT_IST),
                18 => gate(machine_check as *const () as u64, MACHINE_CHECK_IST),
                _ => gate(handler(vector), 0),
            };
        }
    }

    /// The gate of `vector`; `None` beyond the exceptions.
    #[must_use]
    pub fn gate(&self, vector: usize) -> Option<[u64; 2]> {
        self.idt.get(vector).copied()
    }

    /// Base address of the GDT, given the tables' own address.
    #[must_use]
    pub const fn gdt_base(at: u64) -> u64 {
        at.wrapping_add(offset_of!(Self, gdt) as u64)
    }

    /// Base address of the IDT, given the tables' own address.
    #[must_use]
    pub fn idt_base(at: u64) -> u64 {
        at.wrapping_add(offset_of!(Self, idt) as u64)
    }

    /// Base address of the TSS, given the tables' own address.
    #[must_use]
    pub fn task_state_base(at: u64) -> u64 {
        at.wrapping_add(offset_of!(Self, task_state) as u64)
    }

    /// Loads the tables at `at`, IDT first: its handlers work with each GDT and TSS that may be loaded now.
    ///
    /// # Safety
    /// `at` is the address of filled tables that stay where they are for as long as this CPU is in the hypervisor; the
    /// private table is loaded.
    pub unsafe fn load(&mut self, at: u64) {
        let idt = Pointer {
            limit: IDT_LIMIT,
            base: Self::idt_base(at),
        };
        let gdt = Pointer {
            limit: GDT_LIMIT,
            base: Self::gdt_base(at),
        };
        // LTR demands a TSS that is not busy.
        if let Some(task) = self.gdt.get_mut(usize::from(TASK_SELECTOR / 8)) {
            *task &= !(1 << 41);
        }
        // SAFETY: the caller's promise; the selectors are those of the GDT that is loaded here.
        unsafe {
            asm!(
                "lidt [{idt}]",
                "lgdt [{gdt}]",
                "push {code}",
                "lea {scratch}, [rip + 2f]",
                "push {scratch}",
                "retfq",
                "2:",
                "xor {scratch:e}, {scratch:e}",
                "mov ds, {scratch:x}",
                "mov es, {scratch:x}",
                "mov ss, {scratch:x}",
                "mov fs, {scratch:x}",
                "mov gs, {scratch:x}",
                "lldt {scratch:x}",
                "ltr {task:x}",
                idt = in(reg) &raw const idt,
                gdt = in(reg) &raw const gdt,
                code = in(reg) u64::from(CODE_SELECTOR),
                task = in(reg) u64::from(TASK_SELECTOR),
                scratch = out(reg) _,
            );
        }
    }
}

/// What an exception handler finds on its stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExceptionFrame {
    scratch: [u64; 9],
    /// Vector.
    pub vector: u64,
    /// Error code, 0 where the exception has none.
    pub error_code: u64,
    /// Where it happened.
    pub rip: u64,
    cs: u64,
    rflags: u64,
    /// Stack pointer there.
    pub rsp: u64,
    ss: u64,
}

/// A machine check in the hypervisor is handed to the guest at the next entry, which has the handlers for it.
#[unsafe(naked)]
extern "C" fn machine_check() {
    naked_asm!(
        "lock inc dword ptr [{private} + {count}]",
        "iretq",
        private = const PRIVATE_BASE as i64,
        count = const offset_of!(PerCpu, machine_checks),
    )
}

#[unsafe(naked)]
extern "C" fn common() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "mov rdi, rsp",
        "cld",
        "mov rax, rsp",
        "and rsp, -16",
        "push rax",
        "push rax",
        "call {handler}",
        "test eax, eax",
        "jz 2f",
        "pop rsp",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        "2:",
        "mov rdi, [rsp]",
        "mov rsi, {private}",
        "call {failed}",
        "ud2",
        handler = sym mend,
        private = const PRIVATE_BASE as i64,
        failed = sym crate::cpu::recovery::exception,
    )
}

/// One entry stub for each vector, 16 bytes apart.
#[unsafe(naked)]
extern "C" fn stubs() {
    naked_asm!(
        ".set vector, 0",
        ".rept 32",
        ".balign 16",
        ".if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30",
        ".else",
        "push 0",
        ".endif",
        "push vector",
        "jmp {common}",
        ".set vector, vector + 1",
        ".endr",
        common = sym common,
    )
}

fn handler(vector: usize) -> u64 {
    (stubs as *const () as u64).wrapping_add((vector as u64).wrapping_mul(16))
}

const GENERAL_PROTECTION: u64 = 13;
/// #SX: on AMD's processors an INIT that was redirected. Nobody may have sent one; it is dropped.
const SECURITY: u64 = 30;

/// Every exception in the hypervisor but NMI and machine check: either an instruction with a fix-up (1), or our own fault
/// (0), which [`crate::cpu::recovery`] sees to.
extern "sysv64" fn mend(frame: &mut ExceptionFrame) -> u32 {
    if frame.vector == GENERAL_PROTECTION
        && let Some(next) = processor::fixup::continuation(frame.rip)
    {
        frame.rip = next;
        return 1;
    }
    u32::from(frame.vector == SECURITY)
}

/// Runs `work` with the interrupt descriptor table at `table` (256 gates), then loads this CPU's own again.
///
/// # Safety
/// The gates of NMI and the exceptions below 16 in `table` are those of this CPU's own, and `work` raises no other.
pub unsafe fn with_interrupt_table(table: u64, work: impl FnOnce()) {
    let other = Pointer {
        limit: 4095,
        base: table,
    };
    let own = Pointer {
        limit: IDT_LIMIT,
        base: DescriptorTables::idt_base(crate::cpu::TABLES_AT),
    };
    // SAFETY: the caller's promise; both tables are mapped.
    unsafe { asm!("lidt [{}]", in(reg) &raw const other, options(nostack, readonly)) };
    work();
    // SAFETY: as above.
    unsafe { asm!("lidt [{}]", in(reg) &raw const own, options(nostack, readonly)) };
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Decoder, DecoderOptions, Instruction};
    use proptest::prelude::*;

    use super::*;
    use crate::processor::descriptor::{ACCESS_UNUSABLE, Segment, segment};

    const AT: u64 = 0xffff_ffff_1234_5000;

    /// A gate taken to pieces: SDM, "64-Bit IDT Gate Descriptors".
    #[derive(Debug, PartialEq)]
    struct Gate {
        offset: u64,
        selector: u64,
        ist: u64,
        kind: u64,
        system: bool,
        privilege: u64,
        present: bool,
        reserved: u64,
    }

    fn decode([low, high]: [u64; 2]) -> Gate {
        let bits = |from: u32, count: u32| low >> from & ((1 << count) - 1);
        Gate {
            offset: bits(0, 16) | bits(48, 16) << 16 | high << 32,
            selector: bits(16, 16),
            ist: bits(32, 3),
            kind: bits(40, 4),
            system: bits(44, 1) == 0,
            privilege: bits(45, 2),
            present: bits(47, 1) == 1,
            reserved: bits(35, 5) | high >> 32,
        }
    }

    /// What the world switch and the exception handlers count on.
    fn expected(offset: u64, ist: u64) -> Gate {
        let interrupt_gate = 14;
        Gate {
            offset,
            selector: 0x10,
            ist,
            kind: interrupt_gate,
            system: true,
            privilege: 0,
            present: true,
            reserved: 0,
        }
    }

    fn filled() -> DescriptorTables {
        let mut tables = DescriptorTables::empty();
        // What was there before must not show.
        tables.gdt = [u64::MAX; GDT_ENTRIES];
        tables.idt = [[u64::MAX; 2]; VECTORS];
        tables.task_state = [0xff; TASK_STATE_BYTES];
        tables.fill(AT);
        tables
    }

    proptest! {
        #[test]
        fn gates_read_as_they_were_made(handler: u64, ist in 0u8..8) {
            prop_assert_eq!(decode(gate(handler, ist)), expected(handler, u64::from(ist)));
        }
    }

    #[test]
    fn exceptions_go_to_their_handlers_on_their_stacks() {
        let tables = filled();
        for vector in 0..VECTORS {
            let (offset, ist) = match vector {
                2 => (virt::Current::nmi_handler(), 2),
                8 => (handler(8), 1),
                18 => (machine_check as *const () as u64, 4),
                _ => (handler(vector), 0),
            };
            let gate = decode(tables.gate(vector).unwrap());
            assert_eq!(gate, expected(offset, ist), "vector {vector}");
        }
        assert_eq!(tables.gate(VECTORS), None);
    }

    #[test]
    fn segments_are_those_of_linux() {
        let tables = filled();
        let bytes: Vec<u8> = tables.gdt.iter().flat_map(|e| e.to_le_bytes()).collect();
        assert_eq!(bytes.len() - 1, usize::from(GDT_LIMIT));
        // 64-bit code, present, of privilege 0, accessed: nothing is written when it is loaded.
        let code = segment(&bytes, CODE_SELECTOR).unwrap();
        assert_eq!(
            code,
            Segment {
                selector: 0x10,
                base: 0,
                limit: u32::MAX,
                access_rights: 0xa09b,
            }
        );
        // An available TSS, which LTR demands.
        let task = segment(&bytes, TASK_SELECTOR).unwrap();
        assert_eq!(
            task,
            Segment {
                selector: 0x40,
                base: DescriptorTables::task_state_base(AT),
                limit: 103,
                access_rights: 0x89,
            }
        );
        let null = segment(&bytes, 0).unwrap();
        assert_eq!(null.access_rights, ACCESS_UNUSABLE);
        for selector in [0x08, 0x18, 0x20, 0x28, 0x30, 0x38] {
            assert_eq!(segment(&bytes, selector).unwrap().access_rights, 0);
        }
    }

    /// SDM, "64-bit TSS Format": IST 1 to 7 from 0x24 on.
    #[test]
    fn the_task_state_names_three_stacks_and_nothing_else() {
        let tables = filled();
        for at in (4..TASK_STATE_BYTES - 8).step_by(8) {
            let stack = u64::from_le_bytes(tables.task_state[at..at + 8].try_into().unwrap());
            let expected = match at {
                0x24 => private::DOUBLE_FAULT_STACK_END,
                0x2c => private::NMI_STACK_END,
                0x3c => private::MACHINE_CHECK_STACK_END,
                _ => 0,
            };
            assert_eq!(stack, expected, "at {at:#x}");
        }
    }

    /// The stubs are found by their distance, and the common handler by an error code that is always there.
    #[test]
    fn each_stub_pushes_its_vector_and_an_error_code_where_there_is_none() {
        // SDM, "Error Code" and the exceptions' descriptions.
        let with_error_code = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];
        for vector in 0..VECTORS {
            let at = handler(vector);
            // SAFETY: 16 bytes of this program's own text.
            let bytes = unsafe { core::slice::from_raw_parts(at as *const u8, 16) };
            let mut stub: Vec<Instruction> = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE)
                .iter()
                .collect();
            if !with_error_code.contains(&vector) {
                let error_code = stub.remove(0);
                assert_eq!(error_code.code(), Code::Pushq_imm8, "vector {vector}");
                assert_eq!(error_code.immediate(0), 0);
            }
            assert_eq!(stub[0].code(), Code::Pushq_imm8, "vector {vector}");
            assert_eq!(stub[0].immediate(0), vector as u64);
            assert_eq!(stub[1].near_branch_target(), common as *const () as u64);
        }
    }
}
