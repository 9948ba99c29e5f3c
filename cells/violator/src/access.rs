//! Memory, ports and model-specific registers that are not the cell's.

use core::arch::asm;

use gaol_cell::arguments::Arguments;
use gaol_cell::exceptions::Exception;
use gaol_cell::registers::Msr;
use gaol_cell::shared::GuestAddress;
use gaol_cell::{attempt, instructions, println};

/// An address that no cell's configuration has memory at.
const FOREIGN: GuestAddress = GuestAddress::new(1 << 30);

pub fn read_memory(arguments: Arguments<'_>) {
    let address = arguments.address("address", FOREIGN);
    let at = address.number();
    let value: u64;
    // SAFETY: Memory that is not the cell's is no memory of Rust's.
    unsafe {
        match arguments.number("bytes", 4) {
            1 => asm!("movzx {:e}, byte ptr [{}]", out(reg) value, in(reg) at, options(nostack)),
            2 => asm!("movzx {:e}, word ptr [{}]", out(reg) value, in(reg) at, options(nostack)),
            8 => asm!("mov {}, [{}]", out(reg) value, in(reg) at, options(nostack)),
            _ => asm!("mov {:e}, [{}]", out(reg) value, in(reg) at, options(nostack)),
        }
    };
    println!("violator: read {value:#x} at {address}");
}

pub fn write_memory(arguments: Arguments<'_>) {
    let address = arguments.address("address", FOREIGN);
    let value = arguments.number("value", 0x6c6f_6147) as u32;
    // SAFETY: Memory that is not the cell's is no memory of Rust's.
    unsafe { asm!("mov [{}], {:e}", in(reg) address.number(), in(reg) value, options(nostack)) };
    println!("violator: wrote {value:#x} at {address}");
}

pub fn execute_memory(arguments: Arguments<'_>) {
    let address = arguments.address("address", FOREIGN);
    // SAFETY: The hypervisor stops the cell; if it does not, the test has failed, and it does not matter what runs.
    unsafe { asm!("call {}", in(reg) address.number(), clobber_abi("C")) };
}

/// The command register of the keyboard controller, where 0xfe resets the machine.
const KEYBOARD_CONTROLLER: u64 = 0x64;

pub fn read_port(arguments: Arguments<'_>) {
    let port = arguments.number("port", KEYBOARD_CONTROLLER) as u16;
    // SAFETY: The cell has set up no device that could change its memory.
    let value = unsafe { instructions::read_port(port) };
    println!("violator: read {value:#x} from port {port:#x}");
}

pub fn write_port(arguments: Arguments<'_>) {
    let port = arguments.number("port", KEYBOARD_CONTROLLER) as u16;
    let value = arguments.number("value", 0xfe) as u8;
    // SAFETY: The cell has set up no device that could change its memory.
    unsafe { instructions::write_port(port, value) };
    println!("violator: wrote {value:#x} to port {port:#x}");
}

pub fn read_msr(arguments: Arguments<'_>) {
    const VMX_BASIC: u64 = 0x480;
    let msr = Msr(arguments.number("msr", VMX_BASIC) as u32);
    match try_read_msr(msr) {
        Ok(value) => println!("violator: read {value:#x} from MSR {:#x}", msr.0),
        Err(exception) => println!("violator: reading MSR {:#x}: {exception}", msr.0),
    }
}

pub fn write_msr(arguments: Arguments<'_>) {
    const MISC_ENABLE: u64 = 0x1a0;
    let msr = Msr(arguments.number("msr", MISC_ENABLE) as u32);
    let value = arguments.number("value", 0);
    match try_write_msr(msr, value) {
        Ok(()) => println!("violator: wrote {value:#x} to MSR {:#x}", msr.0),
        Err(exception) => println!("violator: writing MSR {:#x}: {exception}", msr.0),
    }
}

pub fn sweep_msrs() {
    let (mut readable, mut refused, mut others) = (0, 0, 0);
    for msr in (0..0x2000).chain(0xc000_0000..0xc000_2000) {
        match try_read_msr(Msr(msr)) {
            Ok(_) => readable += 1,
            Err(Exception { vector: 13 }) => refused += 1,
            Err(_) => others += 1,
        }
    }
    println!("violator: {readable} MSRs readable, {refused} refused, {others} other exceptions");
}

pub fn try_read_msr(msr: Msr) -> Result<u64, Exception> {
    let (low, high): (u32, u32);
    // SAFETY: Reading a register changes no memory.
    let result = unsafe { attempt!("rdmsr", in("ecx") msr.0, out("eax") low, out("edx") high) };
    result.map(|()| u64::from(high) << 32 | u64::from(low))
}

/// What the registers do is for the hypervisor to prevent.
pub fn try_write_msr(msr: Msr, value: u64) -> Result<(), Exception> {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: The tests name registers that do not take away the cell's own memory.
    unsafe { attempt!("wrmsr", in("ecx") msr.0, in("eax") low, in("edx") high) }
}
