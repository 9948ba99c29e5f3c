//! The local APIC of the CPU that runs this code: sending, changing its mode, putting it into its state after reset.
//!
//! SDM, "Advanced Programmable Interrupt Controller (APIC)". In xAPIC mode the guest writes the interrupt command
//! register in two halves; whatever is sent from here between them keeps the high one.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicBool, Ordering};

use gaol_abi::outcome::Reason;

use crate::cpu::{PerCpu, private};
use crate::device::interrupt_command::flat_logical_id;
use crate::error::Failure;
use crate::launch::private_table::APIC_PHYSICAL;
use crate::processor::{self, fixup, msr, pause, read_msr, write_msr};
use crate::virt::{self, contract::Virtualization};

/// APIC_BASE: globally enabled.
pub const BASE_ENABLED: u64 = 1 << 11;
/// APIC_BASE: x2APIC mode.
pub const BASE_X2APIC: u64 = 1 << 10;

/// Registers by their offset in the xAPIC page; in x2APIC mode the MSR is 0x800 + offset / 16.
pub mod register {
    /// Local APIC id.
    pub const ID: u16 = 0x20;
    /// Version, and how many local vectors there are.
    pub const VERSION: u16 = 0x30;
    /// Task priority.
    pub const TASK_PRIORITY: u16 = 0x80;
    /// End of interrupt.
    pub const END_OF_INTERRUPT: u16 = 0xb0;
    /// Logical destination.
    pub const LOGICAL_DESTINATION: u16 = 0xd0;
    /// Destination format: whether logical ids are flat or clusters.
    pub const DESTINATION_FORMAT: u16 = 0xe0;
    /// Spurious interrupt vector.
    pub const SPURIOUS: u16 = 0xf0;
    /// First in-service register.
    pub const IN_SERVICE: u16 = 0x100;
    /// First interrupt request register.
    pub const REQUEST: u16 = 0x200;
    /// Error status.
    pub const ERROR_STATUS: u16 = 0x280;
    /// LVT of corrected machine checks.
    pub const LVT_CMCI: u16 = 0x2f0;
    /// Interrupt command, low half.
    pub const COMMAND_LOW: u16 = 0x300;
    /// Interrupt command, high half.
    pub const COMMAND_HIGH: u16 = 0x310;
    /// LVT of the timer.
    pub const LVT_TIMER: u16 = 0x320;
    /// LVT of the thermal sensor.
    pub const LVT_THERMAL: u16 = 0x330;
    /// LVT of performance monitoring.
    pub const LVT_PERFORMANCE: u16 = 0x340;
    /// LVT of pin LINT0.
    pub const LVT_LINT0: u16 = 0x350;
    /// LVT of pin LINT1.
    pub const LVT_LINT1: u16 = 0x360;
    /// LVT of errors.
    pub const LVT_ERROR: u16 = 0x370;
    /// Initial count of the timer.
    pub const TIMER_INITIAL: u16 = 0x380;
    /// Current count of the timer.
    pub const TIMER_CURRENT: u16 = 0x390;
    /// Divide configuration of the timer.
    pub const TIMER_DIVIDE: u16 = 0x3e0;
}

const LVT_MASKED: u32 = 1 << 16;
const DELIVERY_PENDING: u32 = 1 << 12;
const COMMAND_NMI: u32 = 4 << 8;
const COMMAND_INIT: u32 = (5 << 8) | (1 << 14);
const COMMAND_STARTUP: u32 = (6 << 8) | (1 << 14);

/// How often the delivery status is looked at before a send is given up.
const SEND_PATIENCE: u32 = 100_000;

/// Is the APIC in x2APIC mode?
#[must_use]
pub fn is_x2apic() -> bool {
    read_msr(msr::APIC_BASE) & BASE_X2APIC != 0
}

/// Does the processor have the x2APIC mode?
#[must_use]
pub fn has_x2apic() -> bool {
    let [_, _, features, _] = processor::cpuid(1, 0);
    features & (1 << 21) != 0
}

/// Refuses an APIC that is disabled or has been moved.
pub fn check() -> Result<(), Failure> {
    let base = read_msr(msr::APIC_BASE);
    if base & BASE_ENABLED == 0 || base & 0x000f_ffff_ffff_f000 != APIC_PHYSICAL {
        return Err(Failure::hardware(Reason::ApicState, base));
    }
    Ok(())
}

/// Reads a register in xAPIC mode.
#[inline]
#[must_use]
pub fn read_page(register: u16) -> u32 {
    // SAFETY: the private table maps the APIC's page here, uncached; registers are 4 bytes at multiples of 16.
    unsafe { ((private::APIC + u64::from(register & 0xff0)) as *const u32).read_volatile() }
}

/// Writes a register in xAPIC mode.
#[inline]
pub fn write_page(register: u16, value: u32) {
    // SAFETY: as in `read_page`; the caller has checked what the value does.
    unsafe { ((private::APIC + u64::from(register & 0xff0)) as *mut u32).write_volatile(value) }
}

const fn x2apic_msr(register: u16) -> u32 {
    msr::X2APIC.wrapping_add(register as u32 >> 4)
}

/// Reads a register in whichever mode the APIC is.
#[must_use]
pub fn read(x2apic: bool, register: u16) -> u32 {
    if x2apic {
        read_msr(x2apic_msr(register)) as u32
    } else {
        read_page(register)
    }
}

/// Writes a register in whichever mode the APIC is. A reserved bit in x2APIC mode is ignored.
pub fn write(x2apic: bool, register: u16, value: u32) {
    if x2apic {
        // SAFETY: an APIC register; it can't touch the hypervisor's memory, and interrupts are off.
        let _ = unsafe { fixup::write_msr(x2apic_msr(register), u64::from(value)) };
    } else {
        write_page(register, value);
    }
}

fn wait_until_sent() -> bool {
    (0..SEND_PATIENCE).any(|_| {
        let sent = read_page(register::COMMAND_LOW) & DELIVERY_PENDING == 0;
        if !sent {
            pause();
        }
        sent
    })
}

/// Sends an interprocessor interrupt to one physical APIC id.
#[inline]
pub fn send(x2apic: bool, target: u32, command: u32) {
    if x2apic {
        // SAFETY: the command was composed here or checked; it goes to a CPU under the hypervisor.
        unsafe {
            write_msr(
                x2apic_msr(register::COMMAND_LOW),
                (u64::from(target) << 32) | u64::from(command),
            )
        };
        return;
    }
    let high = read_page(register::COMMAND_HIGH);
    wait_until_sent();
    write_page(register::COMMAND_HIGH, target << 24);
    write_page(register::COMMAND_LOW, command);
    if high != target << 24 {
        wait_until_sent();
        write_page(register::COMMAND_HIGH, high);
    }
}

/// Makes another CPU look into its mailbox.
pub fn kick(cpu: &PerCpu, target: u32) {
    send(cpu.x2apic, target, COMMAND_NMI);
}

/// An NMI to this CPU itself.
pub fn send_nmi_to_self() {
    let x2apic = is_x2apic();
    let id = read(x2apic, register::ID);
    let id = if x2apic { id } else { id >> 24 };
    send(x2apic, id, COMMAND_NMI);
}

/// A real INIT, to a CPU that has left VMX operation.
pub fn send_init(cpu: &PerCpu, target: u32) {
    send(cpu.x2apic, target, COMMAND_INIT);
}

/// A real startup IPI.
pub fn send_startup(cpu: &PerCpu, target: u32, vector: u8) {
    send(cpu.x2apic, target, COMMAND_STARTUP | u32::from(vector));
}

/// An IDT whose every external vector only ends its interrupt; filled when it is first needed.
static DRAIN: DrainTable = DrainTable(core::cell::UnsafeCell::new([[0; 2]; 256]));
static DRAIN_READY: AtomicBool = AtomicBool::new(false);

#[repr(align(16))]
struct DrainTable(core::cell::UnsafeCell<[[u64; 2]; 256]>);

// SAFETY: every CPU that fills it writes the same values, and it is only read by the processor after that.
unsafe impl Sync for DrainTable {}

#[unsafe(naked)]
extern "C" fn drop_interrupt() {
    naked_asm!(
        "push rax",
        "push rcx",
        "push rdx",
        "xor eax, eax",
        "xor edx, edx",
        "mov ecx, {end_of_interrupt}",
        "wrmsr",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "iretq",
        end_of_interrupt = const x2apic_msr(register::END_OF_INTERRUPT),
    )
}

/// The same in xAPIC mode.
#[unsafe(naked)]
extern "C" fn drop_interrupt_in_page() {
    naked_asm!(
        "mov dword ptr [{end_of_interrupt}], 0",
        "iretq",
        end_of_interrupt = const private::APIC as i64 + register::END_OF_INTERRUPT as i64,
    )
}

/// Of the exceptions the one that may come while interrupts are dropped.
const NMI_VECTOR: usize = 2;

/// The CPUs of all cells are in the same mode, so one table serves them.
fn fill_drain_table(cpu: &PerCpu) {
    if DRAIN_READY.load(Ordering::Acquire) {
        return;
    }
    let drop = if cpu.x2apic {
        drop_interrupt as *const () as u64
    } else {
        drop_interrupt_in_page as *const () as u64
    };
    for vector in 0..256usize {
        // The first 32 vectors are exceptions' numbers, but an APIC delivers 16 to 31 as interrupts all the same (an emulated
        // one the others, too), and a cell can send them to itself; the few instructions that run on this table raise no
        // exception. NMIs may come.
        let gate = match vector {
            NMI_VECTOR => cpu.tables.gate(vector).unwrap_or_default(),
            _ => crate::processor::tables::gate(drop, 0),
        };
        // SAFETY: inside the table; see `Sync`.
        unsafe {
            (DRAIN.0.get() as *mut [u64; 2])
                .add(vector)
                .write_volatile(gate)
        };
    }
    DRAIN_READY.store(true, Ordering::Release);
}

/// Ends every interrupt in service and takes and drops every one requested. The APIC is enabled, its task priority is 0 and
/// no source is left.
fn drain(cpu: &PerCpu) {
    fill_drain_table(cpu);
    let any = |first: u16| (0..8u16).any(|n| read(cpu.x2apic, first.wrapping_add(n << 4)) != 0);
    for _ in 0..256 {
        if !any(register::IN_SERVICE) {
            break;
        }
        write(cpu.x2apic, register::END_OF_INTERRUPT, 0);
    }
    for _ in 0..256 {
        if !any(register::REQUEST) {
            break;
        }
        // SAFETY: for these few instructions interrupts are on with an IDT that serves every vector; then the CPU's own
        // IDT is back.
        unsafe {
            crate::processor::tables::with_interrupt_table(DRAIN.0.get() as u64, || {
                virt::Current::take_interrupts();
            });
        }
    }
}

/// The logical id of xAPIC mode after a reset. A cell, which finds an x2APIC everywhere, has the one that it expects of that.
#[must_use]
pub const fn logical_id(cpu: &PerCpu) -> u32 {
    if cpu.x2apic || cpu.is_root {
        0
    } else {
        flat_logical_id(cpu.apic_id)
    }
}

/// Masks all sources, drops what is pending and puts the registers into their state after reset.
pub fn reset(cpu: &PerCpu) {
    let write = |register, value| write(cpu.x2apic, register, value);
    let versions = read(cpu.x2apic, register::VERSION);
    let entries = (versions >> 16) & 0xff;
    for (needs, lvt) in [
        (0, register::LVT_TIMER),
        (0, register::LVT_LINT0),
        (0, register::LVT_LINT1),
        (3, register::LVT_ERROR),
        (4, register::LVT_PERFORMANCE),
        (5, register::LVT_THERMAL),
        (6, register::LVT_CMCI),
    ] {
        if entries >= needs {
            write(lvt, LVT_MASKED);
        }
    }
    write(register::TIMER_INITIAL, 0);
    // SAFETY: stops the deadline timer; a processor without it raises #GP, which is fixed up.
    let _ = unsafe { fixup::write_msr(msr::TSC_DEADLINE, 0) };
    write(register::TASK_PRIORITY, 0);
    write(register::SPURIOUS, 0x1ff);
    drain(cpu);
    write(register::TIMER_DIVIDE, 0);
    write(register::ERROR_STATUS, 0);
    if !cpu.x2apic {
        write(register::DESTINATION_FORMAT, u32::MAX);
        write(register::LOGICAL_DESTINATION, logical_id(cpu) << 24);
    }
    write(register::SPURIOUS, 0xff);
}

/// Takes the APIC into x2APIC mode.
pub fn enter_x2apic(cpu: &mut PerCpu) -> bool {
    let base = read_msr(msr::APIC_BASE);
    let wanted = base | BASE_ENABLED | BASE_X2APIC;
    // Twice: a processor model exists whose logical id is right only after the second write.
    for _ in 0..2 {
        // SAFETY: xAPIC to x2APIC is a permitted transition, and the hypervisor reads the mode from `cpu.x2apic`.
        if unsafe { fixup::write_msr(msr::APIC_BASE, wanted) }.is_none() {
            return false;
        }
    }
    let entered = read_msr(msr::APIC_BASE) & BASE_X2APIC != 0;
    cpu.x2apic = entered;
    cpu.shared.x2apic.store(entered, Ordering::Release);
    entered
}

/// Takes the APIC from x2APIC back to xAPIC mode, by way of disabling it. `false`: it stays disabled, and only an INIT
/// brings it back.
pub fn enter_xapic(cpu: &mut PerCpu) -> bool {
    let base = read_msr(msr::APIC_BASE) & !(BASE_ENABLED | BASE_X2APIC);
    // SAFETY: x2APIC to disabled to xAPIC are permitted transitions (SDM, "x2APIC State Transitions").
    unsafe {
        let _ = fixup::write_msr(msr::APIC_BASE, base);
        let _ = fixup::write_msr(msr::APIC_BASE, base | BASE_ENABLED);
    }
    cpu.x2apic = false;
    cpu.shared.x2apic.store(false, Ordering::Release);
    processor::read_msr(msr::APIC_BASE) & BASE_ENABLED != 0
}

/// Sends to this CPU itself. Only the vector, the delivery mode (fixed) and the trigger mode of `command` count.
pub fn send_self(x2apic: bool, command: u32) {
    let shorthand_self = 1 << 18;
    let command = (command & 0xc0ff) | shorthand_self;
    if !x2apic {
        wait_until_sent();
    }
    write(x2apic, register::COMMAND_LOW, command);
}
