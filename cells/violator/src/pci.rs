//! A PCI function of the cell's own, and those of others, by configuration mechanism 1.
//!
//! Everything that the cell may not do is tried; the lines that it prints say what became of it.

use core::arch::asm;

use gaol_cell::arguments::Arguments;
use gaol_cell::println;
use gaol_cell::shared::GuestAddress;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

const COMMAND: u32 = 4;
const BARS: [u32; 6] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24];
const ROM: u32 = 0x30;

fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: What the ports do is for the hypervisor to prevent; the cell has no device that could change its memory.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)) };
    value
}

fn write32(port: u16, value: u32) {
    // SAFETY: As in `read32`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}

fn write16(port: u16, value: u16) {
    // SAFETY: As in `read32`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack)) };
}

fn write8(port: u16, value: u8) {
    // SAFETY: As in `read32`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

fn select(function: u32, offset: u32) {
    write32(ADDRESS, ENABLE | function << 8 | offset & 0xfc);
}

fn read(function: u32, offset: u32) -> u32 {
    select(function, offset);
    read32(DATA)
}

fn write(function: u32, offset: u32, value: u32) {
    select(function, offset);
    write32(DATA, value);
}

/// Reads the doubleword of the cell's memory at an address.
fn load(address: GuestAddress) -> u32 {
    let value;
    // SAFETY: Registers of a device are no memory of Rust's.
    unsafe { asm!("mov {:e}, [{}]", out(reg) value, in(reg) address.number(), options(nostack)) };
    value
}

/// Looks for functions on the first two buses, and tries all it can on the first one.
///
/// `registers=` is where the cell has the function's memory, `ports=` where its ports are.
pub fn try_all(arguments: Arguments<'_>) {
    let mut own = None;
    let mut count = 0;
    for function in 0..0x200 {
        let id = read(function, 0);
        if id != u32::MAX {
            println!("violator: found {id:08x} at {function:#x}");
            own = own.or(Some(function));
            count += 1;
        }
    }
    println!("violator: {count} functions");
    let Some(own) = own else { return };
    find_sizes(own);
    use_registers(own, arguments);
    switch_on(own);
    write_everywhere(own);
    write_to_others(own);
}

fn find_sizes(own: u32) {
    for (number, bar) in BARS.into_iter().enumerate() {
        let before = read(own, bar);
        write(own, bar, u32::MAX);
        let mask = read(own, bar);
        write(own, bar, 0x1234_5000);
        let moved = read(own, bar);
        write(own, bar, before);
        let after = read(own, bar);
        println!(
            "violator: bar {number} is {before:08x} mask {mask:08x} moved {moved:08x} back {after:08x}"
        );
    }
    write(own, ROM, u32::MAX);
    println!("violator: rom {:08x}", read(own, ROM));
}

fn use_registers(own: u32, arguments: Arguments<'_>) {
    const STATUS: u64 = 8;
    let registers = arguments.address("registers", GuestAddress::new(0));
    let ports = arguments.number("ports", 0) as u16;
    let status = GuestAddress::new(registers.number() + STATUS);
    println!("violator: off {:08x}", load(status));
    write(own, COMMAND, 3);
    println!("violator: on {:08x}", load(status));
    // The second door of this device: an index and its data.
    write32(ports, STATUS as u32);
    println!("violator: ports {:08x}", read32(ports + 4));
    // It stays where it is, whatever the cell believes.
    write(own, BARS[0], 0x0100_0000);
    println!("violator: moved on {:08x}", load(status));
}

fn switch_on(own: u32) {
    for value in [4, 0xffff, 0x0147] {
        select(own, COMMAND);
        write16(DATA, value);
        println!(
            "violator: command {value:04x} is {:08x}",
            read(own, COMMAND)
        );
    }
}

/// Every byte of the function's configuration space, in every width.
fn write_everywhere(own: u32) {
    for value in [u32::MAX, 0, 0xa5a5_a5a5] {
        for offset in (0..256).step_by(4) {
            write(own, offset, value);
            for half in [0, 2] {
                write16(DATA + half, value as u16);
            }
            for byte in 0..4 {
                write8(DATA + byte, value as u8);
            }
            // Across the end of the doubleword.
            write32(DATA + 2, value);
        }
    }
    println!("violator: command is {:08x}", read(own, COMMAND));
    println!("violator: id is {:08x}", read(own, 0));
}

/// The neighbours, and an address that enables nothing.
fn write_to_others(own: u32) {
    for function in (0..0x100).filter(|function| *function != own) {
        for offset in (0..256).step_by(4) {
            write(function, offset, 0x0000_0002);
        }
    }
    write32(ADDRESS, own << 8);
    println!("violator: not enabled {:08x}", read32(DATA));
    println!("violator: others were written to");
}
