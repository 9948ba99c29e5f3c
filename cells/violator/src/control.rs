//! Instructions that control the CPU.

use core::arch::asm;

use gaol_cell::arguments::Arguments;
use gaol_cell::exceptions::Exception;
use gaol_cell::instructions::{cpuid, read_tsc};
use gaol_cell::registers::Msr;
use gaol_cell::{Cell, attempt, interrupts, println};

use crate::access::try_write_msr;

pub fn triple_fault() {
    let nowhere = [0_u16; 5];
    interrupts::disable();
    // SAFETY: This is the end of the cell: with an empty interrupt table, the exception's exception has no handler.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &nowhere) };
}

pub fn raise_exception() {
    // SAFETY: UD2 raises #UD, and the runtime ends the cell.
    unsafe { asm!("ud2") };
}

pub fn storm(cell: &Cell) {
    let count = cell.arguments().number("count", 1_000_000);
    let start = read_tsc();
    for _ in 0..count {
        core::hint::black_box(cpuid(0));
    }
    let cycles = read_tsc().wrapping_sub(start);
    println!("violator: {count} times CPUID in {cycles} cycles");
}

pub fn empty_caches() {
    // SAFETY: WBINVD changes no memory.
    let written_back = unsafe { attempt!("wbinvd") };
    report("wbinvd", written_back);
    // SAFETY: The hypervisor makes it do nothing; where it does not, the caches have just been written back.
    let invalidated = unsafe { attempt!("wbinvd\ninvd") };
    report("invd", invalidated);
}

pub fn execute_vmx() {
    let region = 0x2000_u64;
    // SAFETY: In a cell each of them raises #UD, on a bare machine too, since CR4.VMXE is clear.
    unsafe {
        report(
            "vmxon",
            attempt!("vmxon [{pointer}]", pointer = in(reg) &region),
        );
        report(
            "vmclear",
            attempt!("vmclear [{pointer}]", pointer = in(reg) &region),
        );
        report(
            "vmptrld",
            attempt!("vmptrld [{pointer}]", pointer = in(reg) &region),
        );
        report("vmlaunch", attempt!("vmlaunch"));
        report("vmresume", attempt!("vmresume"));
        report(
            "vmread",
            attempt!("vmread rax, rcx", out("rax") _, in("rcx") 0_u64),
        );
        report("vmxoff", attempt!("vmxoff"));
        report(
            "invept",
            attempt!("invept rax, [{pointer}]", pointer = in(reg) &[0_u64; 2], in("rax") 2_u64),
        );
        report("vmrun", attempt!("vmrun rax", in("rax") region));
    }
}

macro_rules! control_register {
    ($read:ident, $write:ident, $name:literal) => {
        fn $read() -> u64 {
            let value;
            // SAFETY: Reading a control register changes nothing.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }

        fn $write(what: &str, value: u64) {
            let before = $read();
            // SAFETY: The values that the CPU takes at all leave paging as it is, and the old one is put back at once.
            let result = unsafe { attempt!(concat!("mov ", $name, ", {value}"), value = in(reg) value) };
            let after = $read();
            // SAFETY: This value was there before.
            let back = unsafe { attempt!(concat!("mov ", $name, ", {value}"), value = in(reg) before) };
            match result {
                Ok(()) => println!("violator: {what}: wrote {value:#x}, reads {after:#x}"),
                Err(exception) => println!("violator: {what}: {exception}"),
            }
            if back.is_err() || $read() != before {
                println!("violator: {what}: the old value did not come back");
            }
        }
    };
}

control_register!(read_cr0, write_cr0, "cr0");
control_register!(read_cr3, write_cr3, "cr3");
control_register!(read_cr4, write_cr4, "cr4");

/// `reserved=0` leaves reserved bits out, and paging that there is not: an emulator exists whose MOV takes them, so that no
/// VMRUN takes the guest any more.
pub fn write_control_registers(arguments: Arguments<'_>) {
    const PROTECTED: u64 = 1;
    const NOT_WRITE_THROUGH: u64 = 1 << 29;
    const CACHE_DISABLE: u64 = 1 << 30;
    const PAE: u64 = 1 << 5;
    const VMXE: u64 = 1 << 13;
    const SVME: u64 = 1 << 12;
    let (cr0, cr3, cr4) = (read_cr0(), read_cr3(), read_cr4());
    write_cr0("cr0, paging without protection", cr0 & !PROTECTED);
    write_cr0("cr0, caches neither on nor off", cr0 | NOT_WRITE_THROUGH);
    write_cr0("cr0, caches off", cr0 | CACHE_DISABLE);
    if arguments.number("reserved", 1) != 0 {
        write_cr0("cr0, reserved bit", cr0 | 1 << 40);
        write_cr3("cr3, reserved bit", cr3 | 1 << 60);
        write_cr4("cr4, vmxe", cr4 | VMXE);
        write_cr4("cr4, no pae", cr4 & !PAE);
        write_cr4("cr4, reserved bit", cr4 | 1 << 40);
    }
    report(
        "efer, svme",
        try_write_msr(
            Msr::Efer,
            gaol_cell::instructions::read_msr(Msr::Efer) | SVME,
        ),
    );
    set_extended_control();
}

fn set_extended_control() {
    const OSXSAVE: u64 = 1 << 18;
    if cpuid(1).ecx & 1 << 26 == 0 {
        println!("violator: xsetbv: the CPU has no XSAVE");
        return;
    }
    // SAFETY: OSXSAVE only permits XSETBV, and no code of the cell uses the registers that XCR0 is about.
    unsafe {
        report(
            "cr4, osxsave",
            attempt!("mov cr4, {value}", value = in(reg) read_cr4() | OSXSAVE),
        );
        report(
            "xsetbv 1",
            attempt!("xsetbv", in("ecx") 0, in("edx") 0, in("eax") 1),
        );
        report(
            "xsetbv 0",
            attempt!("xsetbv", in("ecx") 0, in("edx") 0, in("eax") 0),
        );
        report(
            "xsetbv of register 1",
            attempt!("xsetbv", in("ecx") 1, in("edx") 0, in("eax") 1),
        );
        report(
            "xsetbv, all bits",
            attempt!("xsetbv", in("ecx") 0, in("edx") -1, in("eax") -1),
        );
    }
}

/// Says what became of an instruction.
pub fn report(what: &str, result: Result<(), Exception>) {
    match result {
        Ok(()) => println!("violator: {what}: done"),
        Err(exception) => println!("violator: {what}: {exception}"),
    }
}
