//! Every register and port of both kinds of guests, against expectations that are written down a second time.

use gaol_abi::config::{MSR_READ, MSR_WRITE, MsrAccess, PortRange};

use super::*;
use crate::virt::svm::maps::MsrPermissions;
use crate::virt::vmx::maps::{MsrBitmap, PortBitmaps};

fn leftover() -> RootShare<'static> {
    static SYSTEM: std::sync::LazyLock<gaol_config::System> =
        std::sync::LazyLock::new(gaol_config::System::built_in);
    RootShare::new(SYSTEM.view())
}

fn covered() -> impl Iterator<Item = u32> {
    (0..=0x1fffu32).chain(0xc000_0000..=0xc000_1fff)
}

/// What a cell reads without an exit.
fn cell_reads(register: u32) -> bool {
    cell_writes(register) && register != 0x49
        || matches!(
            register,
            0x10 | 0x1b | 0x34 | 0x8b | 0xce | 0xfe | 0x10a | 0x1d9 | 0xda0 | 0x800..=0x83f
        )
}

/// What a cell writes without an exit.
fn cell_writes(register: u32) -> bool {
    matches!(
        register,
        // Its mitigations, waits, system calls, memory types, deadline, extended state.
        0x48 | 0x49 | 0xe1 | 0x174..=0x176 | 0x1c4 | 0x1c5 | 0x277 | 0x6e0
        // Task priority, EOI, timer, initial count, divider, self IPI.
        | 0x808 | 0x80b | 0x832 | 0x838 | 0x83e | 0x83f
        | 0xc000_0080..=0xc000_0084 | 0xc000_0100..=0xc000_0103
    )
}

/// What exits when the root reads it: memory types, FEATURE_CONTROL, VMX.
fn root_read_exits(register: u32) -> bool {
    matches!(
        register,
        0x3a | 0x200..=0x23f | 0x250 | 0x258 | 0x259 | 0x268..=0x26f | 0x2ff | 0x480..=0x493
    )
}

/// What exits when the root writes it.
fn root_write_exits(register: u32) -> bool {
    root_read_exits(register)
        || matches!(
            register,
            // APIC, microcode, SMM, voltage, features of the package, memory of the firmware.
            0x1b | 0x79 | 0x9b..=0x9e | 0x150 | 0x1a0 | 0x1f2..=0x1f5 | 0x2a0
            // What writes past EPT.
            | 0x3f1 | 0x560 | 0x561 | 0x570 | 0x17d0
            // Interrupts to others, and what can raise SMIs.
            | 0x82f | 0x830 | 0x833..=0x837
            // Memory encryption, debugger, cache and bandwidth.
            | 0x981..=0x984 | 0xc80 | 0xc81 | 0xc82 | 0xc8f..=0xd8f
        )
}

#[test]
fn the_root_may_do_all_but_what_is_listed() {
    let mut bitmap = Box::new(MsrMap::<MsrBitmap>::new());
    fill_root_msrs(&mut bitmap, &leftover());
    for register in covered() {
        assert_eq!(
            bitmap.intercepts_read(register),
            root_read_exits(register),
            "{register:#x}"
        );
        assert_eq!(
            bitmap.intercepts_write(register),
            root_write_exits(register),
            "{register:#x}"
        );
    }
}

#[test]
fn a_strict_root_writes_what_is_listed() {
    let mut system = gaol_config::encode::System {
        flags: gaol_abi::config::SYSTEM_STRICT_ROOT,
        root_msrs: vec![
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
    let mut bitmap = Box::new(MsrMap::<MsrBitmap>::new());
    fill_root_msrs(&mut bitmap, &RootShare::new(view));
    for register in covered() {
        assert_eq!(
            bitmap.intercepts_read(register),
            root_read_exits(register),
            "{register:#x}"
        );
        let is_listed =
            cell_writes(register) || (0x800..0x900).contains(&register) || register == 0x1b0;
        assert_eq!(
            bitmap.intercepts_write(register),
            root_write_exits(register) || !is_listed,
            "{register:#x}"
        );
    }
    let mut ports = Box::new(PortMap::<PortBitmaps>::new());
    fill_root_ports(&mut ports, &RootShare::new(view), None, core::iter::empty());
    assert!((0..=u16::MAX).all(|port| ports.intercepts(port, 1)));
}

fn access(msr: u32, flags: u32, write_mask: u64) -> MsrAccess {
    MsrAccess {
        msr,
        flags,
        write_mask,
    }
}

#[test]
fn a_cell_may_do_nothing_but_what_is_listed() {
    let more = [
        access(0x198, MSR_READ, 0),
        access(0x199, MSR_READ | MSR_WRITE, u64::MAX),
        access(0x1b0, MSR_READ | MSR_WRITE, 0xf),
        access(0xc000_0062, MSR_WRITE, u64::MAX),
        // What the ledger would never let through does not get through here either.
        access(0x79, MSR_WRITE, u64::MAX),
        access(0x480, MSR_READ, 0),
        access(0x1a0, MSR_READ | MSR_WRITE, u64::MAX),
    ];
    for given in [&[][..], &more] {
        let mut bitmap = Box::new(MsrMap::<MsrBitmap>::new());
        fill_cell_msrs(&mut bitmap, given, true);
        let is_given = |register, list: &[u32]| !given.is_empty() && list.contains(&register);
        for register in covered() {
            assert_eq!(
                bitmap.intercepts_read(register),
                !(cell_reads(register) || is_given(register, &[0x198, 0x199, 0x1b0, 0x1a0])),
                "{register:#x}"
            );
            assert_eq!(
                bitmap.intercepts_write(register),
                !(cell_writes(register) || is_given(register, &[0x199, 0xc000_0062])),
                "{register:#x}"
            );
        }
    }
}

#[test]
fn no_grant_opens_what_the_ledger_denies() {
    for register in covered() {
        for flags in [MSR_READ, MSR_WRITE, MSR_READ | MSR_WRITE] {
            let mask = if flags & MSR_WRITE != 0 { u64::MAX } else { 0 };
            let given = access(register, flags, mask);
            let mut bitmap = Box::new(MsrMap::<MsrBitmap>::new());
            grant(&mut bitmap, &given);
            let opened = !bitmap.intercepts_read(register) || !bitmap.intercepts_write(register);
            let denied_whole =
                gaol_config::ledger::is_denied(&access(register, MSR_READ, 0), false)
                    && gaol_config::ledger::is_denied(&access(register, MSR_WRITE, mask), false);
            assert!(!(opened && denied_whole), "{register:#x}");
            if gaol_config::ledger::msr_is_sound(&given, false) {
                assert_eq!(bitmap.intercepts_read(register), flags & MSR_READ == 0);
                assert_eq!(bitmap.intercepts_write(register), flags & MSR_WRITE == 0);
            }
        }
    }
}

#[test]
fn ports_are_allow_listed_for_cells_and_deny_listed_for_the_root() {
    let mut bitmaps = Box::new(PortMap::<PortBitmaps>::new());
    fill_root_ports(
        &mut bitmaps,
        &leftover(),
        Some(PortRange {
            first: 0x2f8,
            count: 8,
        }),
        core::iter::once(0x92),
    );
    for port in 0..=u16::MAX {
        let moderated =
            (0xcf8..0xd00).contains(&port) || (0x2f8..0x300).contains(&port) || port == 0x92;
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

/// The table is the same; the processor switches less.
#[test]
fn both_vendors_maps_agree_but_for_what_is_kept() {
    let is_kept = |register: u32| matches!(register, 0xc000_0080 | 0x277);
    let is_amds = |register: u32| (0xc001_0000..=0xc001_1fff).contains(&register);
    let mut vmx = Box::new(MsrMap::<MsrBitmap>::new());
    let mut svm = Box::new(MsrMap::<MsrPermissions>::new());
    fill_cell_msrs(&mut vmx, &[], true);
    fill_cell_msrs(&mut svm, &[], true);
    for register in covered() {
        let read = is_kept(register) || vmx.intercepts_read(register);
        let write = is_kept(register) || vmx.intercepts_write(register);
        assert_eq!(svm.intercepts_read(register), read, "{register:#x}");
        assert_eq!(svm.intercepts_write(register), write, "{register:#x}");
    }
    for register in MsrMap::<MsrPermissions>::covered().filter(|register| is_amds(*register)) {
        assert!(svm.intercepts_read(register) && svm.intercepts_write(register));
    }
    fill_root_msrs(&mut vmx, &leftover());
    fill_root_msrs(&mut svm, &leftover());
    for register in covered() {
        let read = is_kept(register) || vmx.intercepts_read(register);
        let write = is_kept(register) || vmx.intercepts_write(register);
        assert_eq!(svm.intercepts_read(register), read, "{register:#x}");
        assert_eq!(svm.intercepts_write(register), write, "{register:#x}");
    }
    for register in MsrMap::<MsrPermissions>::covered().filter(|register| is_amds(*register)) {
        // VM_CR, SMM_CTL, VM_HSAVE_PA, SVM_KEY, the doorbell.
        let read = matches!(register & 0xffff, 0x114 | 0x116..=0x118 | 0x11b);
        // Encryption, memory map, microcode, configuration space, SMM, SEV.
        let write = read
            || matches!(
                register & 0xffff,
                0x10 | 0x16..=0x1d | 0x20 | 0x58 | 0x111..=0x113 | 0x130..=0x136
            );
        assert_eq!(svm.intercepts_read(register), read, "{register:#x}");
        assert_eq!(svm.intercepts_write(register), write, "{register:#x}");
    }
}

#[test]
fn without_an_x2apic_each_access_of_a_cell_to_it_exits() {
    let mut with = Box::new(MsrMap::<MsrPermissions>::new());
    let mut without = Box::new(MsrMap::<MsrPermissions>::new());
    fill_cell_msrs(&mut with, &[], true);
    fill_cell_msrs(&mut without, &[], false);
    for register in covered() {
        let is_apics = (0x800..=0x8ff).contains(&register);
        let read = is_apics || register == 0x1b || with.intercepts_read(register);
        assert_eq!(without.intercepts_read(register), read, "{register:#x}");
        let write = is_apics || with.intercepts_write(register);
        assert_eq!(without.intercepts_write(register), write, "{register:#x}");
    }
}
