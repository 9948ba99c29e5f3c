//! The hardware layer's view of one logical processor: MSRs, control registers, descriptor tables, time, cache and FPU.
//!
//! Thin wrappers, each of which does one instruction or one architectural sequence. Safe functions here are those that
//! cannot violate memory safety; whatever can redirect memory or control flow is `unsafe` and says what the caller owes.

pub mod descriptor;
pub mod fixup;
pub mod fpu;
pub mod tables;

use core::arch::asm;

/// MSR numbers (SDM, volume 4, "Model-Specific Registers").
pub mod msr {
    /// IA32_APIC_BASE.
    pub const APIC_BASE: u32 = 0x1b;
    /// IA32_FEATURE_CONTROL.
    pub const FEATURE_CONTROL: u32 = 0x3a;
    /// IA32_TSC_ADJUST.
    pub const TSC_ADJUST: u32 = 0x3b;
    /// IA32_MTRRCAP.
    pub const MTRR_CAP: u32 = 0xfe;
    /// IA32_ARCH_CAPABILITIES.
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    /// IA32_SYSENTER_CS.
    pub const SYSENTER_CS: u32 = 0x174;
    /// IA32_SYSENTER_ESP.
    pub const SYSENTER_ESP: u32 = 0x175;
    /// IA32_SYSENTER_EIP.
    pub const SYSENTER_EIP: u32 = 0x176;
    /// IA32_MCG_CAP.
    pub const MCG_CAP: u32 = 0x179;
    /// IA32_DEBUGCTL.
    pub const DEBUGCTL: u32 = 0x1d9;
    /// The first variable-range MTRR.
    pub const MTRR_VARIABLE: u32 = 0x200;
    /// Behind the last variable-range MTRR that the SDM allows (32 pairs).
    pub const MTRR_VARIABLE_END: u32 = 0x240;
    /// IA32_MTRR_FIX64K_00000.
    pub const MTRR_FIXED_64K: u32 = 0x250;
    /// IA32_MTRR_FIX16K_80000, the first of two.
    pub const MTRR_FIXED_16K: u32 = 0x258;
    /// IA32_MTRR_FIX4K_C0000, the first of eight.
    pub const MTRR_FIXED_4K: u32 = 0x268;
    /// IA32_PAT.
    pub const PAT: u32 = 0x277;
    /// IA32_MTRR_DEF_TYPE.
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    /// IA32_TSC_DEADLINE.
    pub const TSC_DEADLINE: u32 = 0x6e0;
    /// First MSR of the x2APIC.
    pub const X2APIC: u32 = 0x800;
    /// All numbers that are set apart for the x2APIC.
    pub const X2APIC_ALL: core::ops::RangeInclusive<u32> = 0x800..=0x8ff;
    /// IA32_XSS.
    pub const XSS: u32 = 0xda0;
    /// VM_CR of SVM.
    pub const VM_CR: u32 = 0xc001_0114;
    /// IA32_EFER.
    pub const EFER: u32 = 0xc000_0080;
    /// IA32_STAR.
    pub const STAR: u32 = 0xc000_0081;
    /// IA32_LSTAR.
    pub const LSTAR: u32 = 0xc000_0082;
    /// IA32_CSTAR.
    pub const CSTAR: u32 = 0xc000_0083;
    /// IA32_FMASK.
    pub const FMASK: u32 = 0xc000_0084;
    /// IA32_FS_BASE.
    pub const FS_BASE: u32 = 0xc000_0100;
    /// IA32_GS_BASE.
    pub const GS_BASE: u32 = 0xc000_0101;
    /// IA32_KERNEL_GS_BASE.
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// IA32_TSC_AUX.
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// Bits of CR0.
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1;
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// Emulation.
    pub const EM: u64 = 1 << 2;
    /// Extension type.
    pub const ET: u64 = 1 << 4;
    /// Numeric error.
    pub const NE: u64 = 1 << 5;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Write protect.
    pub const WP: u64 = 1 << 16;
    /// Alignment mask.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4.
pub mod cr4 {
    /// Page size extension.
    pub const PSE: u64 = 1 << 4;
    /// Physical address extension.
    pub const PAE: u64 = 1 << 5;
    /// Machine checks are exceptions; without it they shut the machine down.
    pub const MCE: u64 = 1 << 6;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// User-mode instruction prevention.
    pub const UMIP: u64 = 1 << 11;
    /// 57-bit linear addresses.
    pub const LA57: u64 = 1 << 12;
    /// VMX enable.
    pub const VMXE: u64 = 1 << 13;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE enabled.
    pub const OSXSAVE: u64 = 1 << 18;
    /// FXSAVE and SSE enabled.
    pub const OSFXSR: u64 = 1 << 9;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys for user pages.
    pub const PKE: u64 = 1 << 22;
    /// Every bit that the hypervisor knows how to carry through a launch: VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE,
    /// OSFXSR, OSXMMEXCPT, UMIP, LA57, VMXE, SMXE, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE.
    pub const KNOWN: u64 = 0x7f_7fff & !(1 << 15) & !(1 << 19);
}

/// Bits of EFER.
pub mod efer {
    /// IA-32e mode enable.
    pub const LME: u64 = 1 << 8;
    /// IA-32e mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute enable.
    pub const NXE: u64 = 1 << 11;
}

/// Reads an MSR that exists on every processor that Gaol runs on (others: [`fixup::read_msr`]).
#[must_use]
#[inline]
pub fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDMSR touches no memory; the registers that are read here exist, so it can't fault.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    (u64::from(high) << 32) | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
/// The register exists, takes the value, and the value keeps the hypervisor's execution and memory as they are.
#[inline]
pub unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// Time stamp counter.
#[must_use]
#[inline]
pub fn time_stamp() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC touches no memory and can't fault at CPL 0.
    unsafe {
        asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    (u64::from(high) << 32) | u64::from(low)
}

/// Result of CPUID in the order EAX, EBX, ECX, EDX.
#[must_use]
#[inline]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// Bits of physical addresses.
#[must_use]
pub fn physical_bits() -> u32 {
    cpuid(0x8000_0008, 0)[0] & 0xff
}

macro_rules! control_register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        #[must_use]
        #[inline]
        pub fn $read() -> u64 {
            let value: u64;
            // SAFETY: reading a control or debug register has no effect.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        #[doc = concat!("Writes ", $name, ".")]
        ///
        /// # Safety
        /// The value is legal and keeps the hypervisor's execution and memory as they are.
        #[inline]
        pub unsafe fn $write(value: u64) {
            // SAFETY: the caller's promise.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}

control_register!(read_cr0, write_cr0, "cr0");
control_register!(read_cr2, write_cr2, "cr2");
control_register!(read_cr3, write_cr3, "cr3");
control_register!(read_cr4, write_cr4, "cr4");
control_register!(read_dr0, write_dr0, "dr0");
control_register!(read_dr1, write_dr1, "dr1");
control_register!(read_dr2, write_dr2, "dr2");
control_register!(read_dr3, write_dr3, "dr3");
control_register!(read_dr6, write_dr6, "dr6");
control_register!(read_dr7, write_dr7, "dr7");

/// Which page table this CPU runs with: each has its own, so this tells CPUs apart where no private data is at hand. Never 0.
#[must_use]
#[inline]
pub fn own_table() -> u64 {
    // Programs of the host, its tests, may not look.
    if cfg!(target_os = "none") {
        read_cr3()
    } else {
        1
    }
}

/// Drops the TLB entry of one page.
#[inline]
pub fn invalidate_page(address: u64) {
    // SAFETY: dropping a translation can't make a valid one wrong.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// Writes the cache line at `address`, which is mapped, back to memory, and forgets it: for those who read memory without
/// looking into caches. Ordered with all other stores.
pub fn flush_cache_line(address: u64) {
    // SAFETY: what memory holds does not change for those who look through the caches.
    unsafe {
        asm!("mfence", "clflush [{}]", "mfence", in(reg) address, options(nostack, preserves_flags))
    };
}

/// Tells the processor that this is a spin loop.
#[inline]
pub fn pause() {
    core::hint::spin_loop();
}

/// Stops for ever, with interrupts off; NMIs are served and lead back here.
pub fn halt_for_ever() -> ! {
    loop {
        // SAFETY: CLI and HLT touch no memory.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Reads a byte, word or doubleword from an I/O port (`size` 1, 2 or 4; anything else reads as ones).
///
/// # Safety
/// Reading the port has no effect that the hypervisor depends on not happening.
#[inline(always)]
pub unsafe fn port_read(port: u16, size: u32) -> u32 {
    let mut value: u32 = u32::MAX;
    // SAFETY: port accesses touch no memory; the caller vouches for the port.
    unsafe {
        match size {
            1 => {
                let byte: u8;
                asm!("in al, dx", in("dx") port, out("al") byte, options(nomem, nostack, preserves_flags));
                value = u32::from(byte);
            }
            2 => {
                let word: u16;
                asm!("in ax, dx", in("dx") port, out("ax") word, options(nomem, nostack, preserves_flags));
                value = u32::from(word);
            }
            4 => {
                asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags))
            }
            _ => {}
        }
    }
    value
}

/// Writes to an I/O port (`size` 1, 2 or 4; anything else does nothing).
///
/// # Safety
/// As for [`port_read`].
#[inline(always)]
pub unsafe fn port_write(port: u16, size: u32, value: u32) {
    // SAFETY: as in `port_read`.
    unsafe {
        match size {
            1 => {
                asm!("out dx, al", in("dx") port, in("al") value as u8, options(nomem, nostack, preserves_flags))
            }
            2 => {
                asm!("out dx, ax", in("dx") port, in("ax") value as u16, options(nomem, nostack, preserves_flags))
            }
            4 => {
                asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags))
            }
            _ => {}
        }
    }
}

/// Lets NMIs through again after a VM exit that one caused: only IRET ends their blocking (SDM, "Handling Multiple
/// NMIs"), and not every processor model ends it at VM entry.
#[inline]
pub fn unblock_nmis() {
    // SAFETY: IRETQ to the next instruction with the segments and flags that are loaded; the frame is popped again.
    unsafe {
        asm!(
            "mov {stack}, rsp",
            "mov {selector:e}, ss",
            "push {selector}",
            "push {stack}",
            "pushfq",
            "mov {selector:e}, cs",
            "push {selector}",
            "lea {selector}, [rip + 2f]",
            "push {selector}",
            "iretq",
            "2:",
            stack = out(reg) _,
            selector = out(reg) _,
        );
    }
}
