//! What the root and cells may do without an exit: MSRs and ports.
//!
//! Everything exits but what is listed here. The tables are the one place where this is decided.

use gaol_abi::config::{MSR_READ, MSR_WRITE, MsrAccess, PortRange};

use super::root::RootShare;
use crate::device::apic::register;
use crate::guest::bitmaps::{MsrBitmap, PortBitmaps};
use crate::processor::msr;
use crate::virt::vmx::fields::msr as vmx_msr;

const fn x2apic(register: u16) -> u32 {
    msr::X2APIC.wrapping_add(register as u32 >> 4)
}

/// MSRs of the root that exit at RDMSR.
const ROOT_READS: [core::ops::RangeInclusive<u32>; 3] = [
    // What it wrote, not what the hypervisor left in force.
    msr::MTRR_DEF_TYPE..=msr::MTRR_DEF_TYPE,
    vmx_msr::FEATURE_CONTROL..=vmx_msr::FEATURE_CONTROL,
    vmx_msr::BASIC..=0x492,
];

/// MSRs of the root that exit at WRMSR.
const ROOT_WRITES: [core::ops::RangeInclusive<u32>; 10] = [
    vmx_msr::FEATURE_CONTROL..=vmx_msr::FEATURE_CONTROL,
    msr::APIC_BASE..=msr::APIC_BASE,
    msr::MTRR_VARIABLE..=msr::MTRR_VARIABLE_END - 1,
    msr::MTRR_FIXED_64K..=msr::MTRR_FIXED_64K,
    msr::MTRR_FIXED_16K..=0x259,
    msr::MTRR_FIXED_4K..=0x26f,
    msr::MTRR_DEF_TYPE..=msr::MTRR_DEF_TYPE,
    vmx_msr::BASIC..=0x492,
    x2apic(register::LVT_CMCI)..=x2apic(register::COMMAND_LOW),
    x2apic(register::LVT_THERMAL)..=x2apic(register::LVT_ERROR),
];

/// MSRs that a cell may read and write: they are its own on its CPU and are cleared when the CPU changes hands.
const CELL_OWN: [u32; 15] = [
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::PAT,
    msr::TSC_DEADLINE,
    msr::EFER,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::FMASK,
    msr::FS_BASE,
    msr::GS_BASE,
    msr::KERNEL_GS_BASE,
    msr::TSC_AUX,
    // IA32_SPEC_CTRL
    0x48,
];

/// MSRs that a cell may read: time, identification and health of the machine.
const CELL_READS: [u32; 8] = [
    // IA32_TIME_STAMP_COUNTER
    0x10,
    msr::APIC_BASE,
    // MSR_SMI_COUNT: a real-time cell must be able to tell firmware's delays from others.
    0x34,
    // IA32_BIOS_SIGN_ID
    0x8b,
    // MSR_PLATFORM_INFO
    0xce,
    msr::MTRR_CAP,
    msr::ARCH_CAPABILITIES,
    // IA32_MCG_CAP
    0x179,
];

/// x2APIC registers that a cell may write: they can't reach another CPU or raise an SMI.
const CELL_APIC_WRITES: [u32; 6] = [
    x2apic(register::TASK_PRIORITY),
    x2apic(register::END_OF_INTERRUPT),
    x2apic(register::LVT_TIMER),
    x2apic(register::TIMER_INITIAL),
    x2apic(register::TIMER_DIVIDE),
    // Self IPI
    msr::X2APIC + 0x3f,
];

/// The ports that are moderated for everyone: PCI configuration mechanism 1.
const CONFIG_PORTS: PortRange = PortRange {
    first: 0xcf8,
    count: 8,
};

/// Fills the root's MSR bitmap. A strict root may read what another may, and write what all cells may and what is listed.
pub fn fill_root_msrs(bitmap: &mut MsrBitmap, share: &RootShare<'_>) {
    bitmap.allow_all();
    if share.is_strict() {
        for register in MsrBitmap::covered() {
            let is_common = CELL_OWN.contains(&register) || is_x2apic(register);
            if !is_common && share.write_mask(register) != u64::MAX {
                bitmap.intercept_write(register);
            }
        }
    }
    ROOT_READS
        .into_iter()
        .flatten()
        .for_each(|register| bitmap.intercept_read(register));
    ROOT_WRITES
        .into_iter()
        .flatten()
        .for_each(|register| bitmap.intercept_write(register));
}

/// Fills a cell's MSR bitmap; `more` is what it gets besides what all cells have. Writes to parts of a register exit.
pub fn fill_cell_msrs(bitmap: &mut MsrBitmap, more: &[MsrAccess]) {
    bitmap.intercept_all();
    // Every number in the tables is in the two ranges that the bitmap covers: the tests look at each.
    for register in CELL_OWN {
        let _ = bitmap.allow_read(register);
        let _ = bitmap.allow_write(register);
    }
    for register in CELL_READS {
        let _ = bitmap.allow_read(register);
    }
    let _ = bitmap.allow_reads(msr::X2APIC..=msr::X2APIC + 0x3f);
    for register in CELL_APIC_WRITES {
        let _ = bitmap.allow_write(register);
    }
    // So is every number that the ledger lets through.
    for access in more {
        if access.flags & MSR_READ != 0 {
            let _ = bitmap.allow_read(access.msr);
        }
        if access.flags & MSR_WRITE != 0 && access.write_mask == u64::MAX {
            let _ = bitmap.allow_write(access.msr);
        }
    }
}

const fn is_x2apic(register: u32) -> bool {
    register.wrapping_sub(msr::X2APIC) < 0x40
}

/// Fills the root's port bitmaps: all ports that it may have but the moderated ones and the console's.
pub fn fill_root_ports(
    bitmaps: &mut PortBitmaps,
    share: &RootShare<'_>,
    console: Option<PortRange>,
) {
    bitmaps.allow_all();
    if share.is_strict() {
        let foreign = (0..=u16::MAX).filter(|port| !share.has_port(*port));
        foreign.for_each(|port| bitmaps.intercept(port, 1));
    }
    bitmaps.intercept(CONFIG_PORTS.first, CONFIG_PORTS.count);
    if let Some(range) = console {
        bitmaps.intercept(range.first, range.count);
    }
}

/// Fills a cell's port bitmaps: its own ports.
pub fn fill_cell_ports<'a>(bitmaps: &mut PortBitmaps, ports: impl Iterator<Item = &'a PortRange>) {
    bitmaps.intercept_all();
    for range in ports {
        bitmaps.allow(range.first, range.count);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    /// What a root cell gets by default.
    fn leftover() -> RootShare<'static> {
        static SYSTEM: std::sync::LazyLock<gaol_config::System> =
            std::sync::LazyLock::new(gaol_config::System::built_in);
        RootShare::new(SYSTEM.view())
    }

    #[test]
    fn a_strict_root_writes_what_is_listed() {
        let mut system = gaol_config::encode::System {
            flags: gaol_abi::config::SYSTEM_STRICT_ROOT,
            root_msrs: std::vec![
                MsrAccess {
                    msr: 0x1b0,
                    flags: MSR_WRITE,
                    write_mask: u64::MAX,
                },
                MsrAccess {
                    msr: 0x1a0,
                    flags: MSR_WRITE,
                    write_mask: 1,
                },
            ],
            ..gaol_config::encode::System::default()
        };
        system.header.name = gaol_config::encode::name("root").unwrap();
        system.header.hypervisor_size = 4 << 20;
        let binary = system.encode();
        let view = gaol_config::SystemView::parse(binary.bytes()).unwrap();
        let mut bitmap = std::boxed::Box::new(MsrBitmap::new());
        fill_root_msrs(&mut bitmap, &RootShare::new(view));
        let mut usual = std::boxed::Box::new(MsrBitmap::new());
        fill_root_msrs(&mut usual, &leftover());
        for register in (0..=0x1fffu32).chain(0xc000_0000..=0xc000_1fff) {
            assert_eq!(
                bitmap.intercepts_read(register),
                usual.intercepts_read(register)
            );
            let is_listed = CELL_OWN.contains(&register)
                || (0x800..0x840).contains(&register)
                || register == 0x1b0;
            assert_eq!(
                bitmap.intercepts_write(register),
                usual.intercepts_write(register) || !is_listed,
                "{register:#x}"
            );
        }
        let mut ports = std::boxed::Box::new(PortBitmaps::new());
        fill_root_ports(&mut ports, &RootShare::new(view), None);
        assert!((0..=u16::MAX).all(|port| ports.intercepts(port, 1)));
    }

    #[test]
    fn the_root_may_do_all_but_what_is_listed() {
        let mut bitmap = std::boxed::Box::new(MsrBitmap::new());
        fill_root_msrs(&mut bitmap, &leftover());
        for register in (0..=0x1fffu32).chain(0xc000_0000..=0xc000_1fff) {
            let read = ROOT_READS.iter().any(|range| range.contains(&register));
            let write = ROOT_WRITES.iter().any(|range| range.contains(&register));
            assert_eq!(bitmap.intercepts_read(register), read, "{register:#x}");
            assert_eq!(bitmap.intercepts_write(register), write, "{register:#x}");
        }
    }

    #[test]
    fn a_cell_may_do_nothing_but_what_is_listed() {
        let mut bitmap = std::boxed::Box::new(MsrBitmap::new());
        let access = |msr, flags, write_mask| MsrAccess {
            msr,
            flags,
            write_mask,
        };
        let more = [
            access(0x198, MSR_READ, 0),
            access(0x199, MSR_READ | MSR_WRITE, u64::MAX),
            access(0x1b0, MSR_READ | MSR_WRITE, 0xf),
            access(0xc001_0062 & 0xc000_1fff, MSR_WRITE, u64::MAX),
        ];
        fill_cell_msrs(&mut bitmap, &more);
        for register in (0..=0x1fffu32).chain(0xc000_0000..=0xc000_1fff) {
            let read = |access: &&MsrAccess| access.msr == register && access.flags & MSR_READ != 0;
            let whole =
                |access: &&MsrAccess| access.msr == register && access.write_mask == u64::MAX;
            let (extra_read, extra_write) = (
                more.iter().find(read).is_some(),
                more.iter().find(whole).is_some(),
            );
            let own = CELL_OWN.contains(&register);
            let apic = (0x800..0x840).contains(&register);
            assert_eq!(
                bitmap.intercepts_read(register),
                !(own || apic || extra_read || CELL_READS.contains(&register))
            );
            assert_eq!(
                bitmap.intercepts_write(register),
                !(own || extra_write || CELL_APIC_WRITES.contains(&register))
            );
        }
        // No interrupt command, no LVT that could raise an SMI, no APIC_BASE, no microcode, no HWP.
        for register in [
            0x830, 0x82f, 0x835, 0x836, 0x1b, 0x79, 0x1a0, 0x774, 0x150, 0x3b,
        ] {
            assert!(bitmap.intercepts_write(register));
        }
    }

    #[test]
    fn ports_are_allow_listed_for_cells_and_deny_listed_for_the_root() {
        let mut bitmaps = std::boxed::Box::new(PortBitmaps::new());
        fill_root_ports(
            &mut bitmaps,
            &leftover(),
            Some(PortRange {
                first: 0x2f8,
                count: 8,
            }),
        );
        for port in 0..=u16::MAX {
            let moderated = (0xcf8..0xd00).contains(&port) || (0x2f8..0x300).contains(&port);
            assert_eq!(bitmaps.intercepts(port, 1), moderated, "{port:#x}");
        }
        fill_cell_ports(
            &mut bitmaps,
            [PortRange {
                first: 0x3f8,
                count: 8,
            }]
            .iter(),
        );
        for port in 0..=u16::MAX {
            assert_eq!(
                bitmaps.intercepts(port, 1),
                !(0x3f8..0x400).contains(&port),
                "{port:#x}"
            );
        }
    }
}
