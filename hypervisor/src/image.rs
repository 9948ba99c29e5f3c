//! What an image has around the library: header, entry point and panic handler.

/// The whole of an image's program.
#[macro_export]
macro_rules! image {
    () => {
        // The header holds what only the linker knows, so it is written in its language: `gaol_abi::image::ImageHeader`.
        core::arch::global_asm!(
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
            signature = const u64::from_le_bytes(gaol_abi::image::SIGNATURE),
            revision = const gaol_abi::ABI_REVISION,
            vendor = const <$crate::virt::Current as $crate::virt::contract::Virtualization>::VENDOR.0,
            area = const $crate::cpu::area::SIZE,
            enter = sym $crate::launch::enter,
        );

        #[panic_handler]
        fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
            let (file, line) = info
                .location()
                .map_or(("?", 0), |place| (place.file(), place.line()));
            $crate::cpu::recovery::panicked(file, line)
        }
    };
}
