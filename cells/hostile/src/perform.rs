//! Carries attempts out.
//!
//! Invariant: what an attempt leaves changed in this CPU – a control register, a register of its own – is put back before
//! the next one; and an attempt that is expected to be survived writes no memory of Rust's.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gaol_abi::hypercall::Hypercall;
use gaol_cell::exceptions::Exception;
use gaol_cell::instructions::cpuid;
use gaol_cell::registers::Msr;
use gaol_cell::{COMMUNICATION_REGION, apic, attempt, hypercall};
use hostile_cell::attempt::{
    Attempt, CONSTANT, Control, DATA, Destination, Place, Register, SCRATCH, SHARED, Use, Width,
};
use hostile_cell::outcome::Outcome;
use hostile_cell::violations::Vendor;

use crate::user;

mod descent;
mod endings;
mod instructions;
pub mod memory;

/// Where the hypervisor's memory is in the machine, and that of another cell.
static HYPERVISOR: AtomicU64 = AtomicU64::new(0);
static VICTIM: AtomicU64 = AtomicU64::new(0);

/// Says where the memory of others is.
pub fn set_targets(hypervisor: u64, victim: u64) {
    HYPERVISOR.store(hypervisor, Ordering::Relaxed);
    VICTIM.store(victim, Ordering::Relaxed);
}

/// A CPU that attempts things.
#[derive(Clone, Copy, Debug)]
pub struct Attacker {
    /// Its number in the cell.
    number: u32,
    /// Whose processor it is.
    vendor: Vendor,
}

/// Whether this is QEMU.
static ON_QEMU: AtomicBool = AtomicBool::new(false);

/// Leaves out what QEMU's processors do not refuse as others do.
pub fn spare_qemu() {
    ON_QEMU.store(true, Ordering::Relaxed);
}

/// The outcome of an instruction that may raise an exception and gives nothing.
fn plain(result: Result<(), Exception>) -> Outcome {
    with(result, || Outcome::Done)
}

/// The outcome of an instruction that may raise an exception, else what `otherwise` says.
fn with(result: Result<(), Exception>, otherwise: impl FnOnce() -> Outcome) -> Outcome {
    match result {
        Ok(()) => otherwise(),
        Err(Exception { vector }) => Outcome::Exception(vector),
    }
}

fn read_msr(register: u32) -> Result<u64, Exception> {
    let (low, high): (u32, u32);
    // SAFETY: Reading a register changes no memory.
    let result = unsafe { attempt!("rdmsr", in("ecx") register, out("eax") low, out("edx") high) };
    result.map(|()| u64::from(high) << 32 | u64::from(low))
}

fn write_msr(register: u32, value: u64) -> Result<(), Exception> {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: The table and the generator leave out those that the cell's own program stands on.
    unsafe { attempt!("wrmsr", in("ecx") register, in("eax") low, in("edx") high) }
}

fn change_msr(register: u32, set: u64, clear: u64) -> Outcome {
    let before = match read_msr(register) {
        Ok(before) => before,
        Err(Exception { vector }) => return Outcome::Exception(vector),
    };
    let wanted = before & !clear | set;
    let result = write_msr(register, wanted);
    let after = read_msr(register);
    let _ = write_msr(register, before);
    with(result, || match after {
        Ok(after) if after == wanted => Outcome::Done,
        Ok(after) => Outcome::Value(after),
        Err(Exception { vector }) => Outcome::Exception(vector),
    })
}

fn read_port(port: u16, width: Width) -> Outcome {
    let mut value = 0_u32;
    // SAFETY: The hypervisor lets no device see it.
    let result = unsafe {
        match width {
            Width::Byte => attempt!("in al, dx", in("dx") port, inout("eax") value),
            Width::Word => attempt!("in ax, dx", in("dx") port, inout("eax") value),
            Width::Long | Width::Quad => attempt!("in eax, dx", in("dx") port, inout("eax") value),
        }
    };
    with(result, || Outcome::Value(value.into()))
}

fn write_port(port: u16, width: Width, value: u32) -> Outcome {
    // SAFETY: The hypervisor lets no device see it.
    plain(unsafe {
        match width {
            Width::Byte => attempt!("out dx, al", in("dx") port, in("eax") value),
            Width::Word => attempt!("out dx, ax", in("dx") port, in("eax") value),
            Width::Long | Width::Quad => attempt!("out dx, eax", in("dx") port, in("eax") value),
        }
    })
}

fn read_port_string(port: u16, width: Width, count: u64) -> Outcome {
    // SAFETY: What comes, if anything does, goes to the scratch memory.
    plain(unsafe {
        match width {
            Width::Byte => {
                attempt!("rep insb", in("dx") port, inout("rdi") SCRATCH => _, inout("rcx") count => _)
            }
            Width::Word => {
                attempt!("rep insw", in("dx") port, inout("rdi") SCRATCH => _, inout("rcx") count => _)
            }
            Width::Long | Width::Quad => {
                attempt!("rep insd", in("dx") port, inout("rdi") SCRATCH => _, inout("rcx") count => _)
            }
        }
    })
}

fn write_port_string(port: u16, width: Width, count: u64) -> Outcome {
    // SAFETY: The hypervisor lets no device see it.
    plain(unsafe {
        match width {
            Width::Byte => {
                attempt!("rep outsb", in("dx") port, inout("rsi") SCRATCH => _, inout("rcx") count => _)
            }
            Width::Word => {
                attempt!("rep outsw", in("dx") port, inout("rsi") SCRATCH => _, inout("rcx") count => _)
            }
            Width::Long | Width::Quad => {
                attempt!("rep outsd", in("dx") port, inout("rsi") SCRATCH => _, inout("rcx") count => _)
            }
        }
    })
}

/// Port of the configuration address, and the first of the data.
const CONFIGURATION_ADDRESS: u16 = 0xcf8;
const CONFIGURATION_DATA: u16 = 0xcfc;

/// The data port for the register of an address.
const fn data_port(address: u32) -> u16 {
    CONFIGURATION_DATA + (address & 3) as u16
}

/// Makes an access to a control or debug register and puts it back.
macro_rules! change_register {
    ($name:literal, $set:expr, $clear:expr) => {{
        let before: u64;
        let after: u64;
        // SAFETY: Reading the register changes nothing.
        unsafe { asm!(concat!("mov {}, ", $name), out(reg) before, options(nomem, nostack)) };
        let wanted = before & !$clear | $set;
        // SAFETY: What the processor takes of it leaves the next instructions as they are, and the old value comes back
        // at once.
        let result = unsafe { attempt!(concat!("mov ", $name, ", {value}"), value = in(reg) wanted) };
        // SAFETY: As before.
        unsafe { asm!(concat!("mov {}, ", $name), out(reg) after, options(nomem, nostack)) };
        // SAFETY: As before.
        let back = unsafe { attempt!(concat!("mov ", $name, ", {value}"), value = in(reg) before) };
        let refused = result.is_err();
        with(result.and(back), || match after == wanted || refused {
            true => Outcome::Done,
            false => Outcome::Value(after),
        })
    }};
}

fn change_control(control: Control, set: u64, clear: u64) -> Outcome {
    match control {
        Control::Cr0 => change_register!("cr0", set, clear),
        Control::Cr2 => change_register!("cr2", set, clear),
        Control::Cr3 => change_register!("cr3", set, clear),
        Control::Cr4 => change_register!("cr4", set, clear),
        Control::Cr8 => change_register!("cr8", set, clear),
        Control::Dr6 => change_register!("dr6", set, clear),
        Control::Dr7 => change_register!("dr7", set, clear),
    }
}

const OSXSAVE: u64 = 1 << 18;

/// With CR4.OSXSAVE set meanwhile.
fn set_extended_control(register: u32, value: u64) -> Outcome {
    let before: u64;
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: OSXSAVE only permits XSETBV, and no code of the cell uses the registers that XCR0 is about.
    unsafe {
        asm!("mov {}, cr4", out(reg) before, options(nomem, nostack));
        let enabled = attempt!("mov cr4, {value}", value = in(reg) before | OSXSAVE);
        let result = attempt!("xsetbv", in("ecx") register, in("edx") high, in("eax") low);
        if enabled.is_ok() && result.is_ok() {
            let _ = attempt!("xsetbv", in("ecx") 0, in("edx") 0, in("eax") 1);
        }
        let _ = attempt!("mov cr4, {value}", value = in(reg) before);
        plain(enabled.and(result))
    }
}

fn identify(leaf: u32, subleaf: u32, register: Register, mask: u32) -> Outcome {
    let answer = __cpuid_count(leaf, subleaf);
    let value = match register {
        Register::Eax => answer.eax,
        Register::Ebx => answer.ebx,
        Register::Ecx => answer.ecx,
        Register::Edx => answer.edx,
    };
    Outcome::Value((value & mask).into())
}

fn call(number: u32, first: u64, second: u64) -> Outcome {
    match hypercall::call(Hypercall(number), first, second) {
        Ok(value) => Outcome::Value(value.into()),
        Err(errno) => Outcome::Refused(errno.0),
    }
}

impl Attacker {
    /// The CPU with this number.
    pub fn new(number: u32) -> Self {
        Self {
            number,
            vendor: Vendor::of_cpuid(cpuid(0).ebx),
        }
    }

    /// Whose processor it is.
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Whether it makes this attempt; see `qemu` of the command line.
    pub fn attempts(&self, attempt: Attempt) -> bool {
        !attempt.is_beyond_qemu() || !ON_QEMU.load(Ordering::Relaxed)
    }

    /// Attempts it. Does not return where the attempt is the end of this CPU.
    pub fn perform(&self, attempt: Attempt) -> Outcome {
        if !self.attempts(attempt) {
            return Outcome::Done;
        }
        match attempt {
            Attempt::ReadMsr(register) => match read_msr(register) {
                Ok(value) => Outcome::Value(value),
                Err(Exception { vector }) => Outcome::Exception(vector),
            },
            Attempt::WriteMsr(register, value) => plain(write_msr(register, value)),
            Attempt::ChangeMsr(register, set, clear) => change_msr(register, set, clear),
            Attempt::In(port, width) => read_port(port, width),
            Attempt::Out(port, width, value) => write_port(port, width, value),
            Attempt::InString(port, width, count) => read_port_string(port, width, count),
            Attempt::OutString(port, width, count) => write_port_string(port, width, count),
            Attempt::Memory(place, work) => self.access(place, work),
            Attempt::Hypercall(number, first, second) => call(number, first, second),
            Attempt::Interrupt(destination, command) => {
                let destination = match destination {
                    Destination::Own => apic::id(),
                    Destination::Id(id) => id,
                };
                let value = u64::from(destination) << 32 | u64::from(command);
                plain(write_msr(Msr::InterruptCommand.0, value))
            }
            Attempt::ChangeControl(control, set, clear) => change_control(control, set, clear),
            Attempt::ExtendedControl(register, value) => set_extended_control(register, value),
            Attempt::Cpuid(leaf, subleaf, register, mask) => {
                identify(leaf, subleaf, register, mask)
            }
            Attempt::ReadPci(address, width) => {
                write_port(CONFIGURATION_ADDRESS, Width::Long, address);
                read_port(data_port(address), width)
            }
            Attempt::WritePci(address, width, value) => {
                write_port(CONFIGURATION_ADDRESS, Width::Long, address);
                write_port(data_port(address), width, value)
            }
            Attempt::Execute(instruction) => instructions::execute(instruction),
            Attempt::ExecuteAsUser(instruction) => {
                user::execute(self.number, instruction, self.vendor)
            }
            Attempt::End(ending) => endings::end(self.number, ending),
        }
    }

    fn access(&self, place: Place, work: Use) -> Outcome {
        let address = match place {
            Place::At(address) => address,
            Place::Hypervisor(offset) => HYPERVISOR.load(Ordering::Relaxed) + offset,
            Place::Victim(offset) => VICTIM.load(Ordering::Relaxed) + offset,
            Place::Scratch(offset) => SCRATCH + offset,
            Place::Communication(offset) => COMMUNICATION_REGION.number() + offset,
            Place::Shared(offset) => SHARED + offset,
            Place::Constant(offset) => CONSTANT + offset,
            Place::Data(offset) => DATA + offset,
        };
        memory::access(self.number, address, work)
    }
}
