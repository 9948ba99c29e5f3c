//! The image for Intel's VMX: header, entry point and panic handler around the library.
#![no_std]
#![no_main]

use core::arch::global_asm;

use gaol_abi::ABI_REVISION;
use gaol_abi::image::{SIGNATURE, Vendor};
use gaol_hypervisor::cpu::area;

// The header holds what only the linker knows, so it is written in its language: `gaol_abi::image::ImageHeader`.
global_asm!(
    ".section .header, \"a\"",
    ".quad {signature}",
    ".long {revision}",
    ".long {vendor}",
    ".long 0, 0",
    ".quad header_file_size",
    ".quad header_memory_size",
    ".quad header_entry",
    ".quad 0",
    ".quad header_text_size",
    ".quad header_rodata",
    ".quad header_rodata_size",
    ".quad header_data",
    ".quad header_data_size",
    ".quad {area}",
    ".section .text.gaol_entry, \"ax\"",
    ".globl gaol_entry",
    // RDI: the handover page; RSP: the end of this CPU's area. The stub comes here with interrupts off.
    "gaol_entry:",
    "cld",
    "xor ebp, ebp",
    "call {enter}",
    "ud2",
    signature = const u64::from_le_bytes(SIGNATURE),
    revision = const ABI_REVISION,
    vendor = const Vendor::Vmx.0,
    area = const area::SIZE,
    enter = sym gaol_hypervisor::launch::enter,
);

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let (file, line) = info
        .location()
        .map_or(("?", 0), |place| (place.file(), place.line()));
    gaol_hypervisor::cpu::recovery::panicked(file, line)
}
