//! Tests of the tables: good, cut off at every byte, and damaged.

use proptest::prelude::*;

use super::fadt::{Place, Register};
use super::madt::{IoApic, LocalApic, Nmi, Override};
use super::*;
use crate::testing::tables::*;

fn sample_madt() -> Vec<u8> {
    madt(&[
        local_apic(0, 0, true),
        local_apic(1, 2, false),
        x2apic(300, 0x1ff, true),
        io_apic(4, 0xfec0_0000, 24),
        interrupt_override(9, 20, 0xd),
        nmi_source(5, 30),
        local_nmi(0xff, 5, 1),
        x2apic_nmi(300, 0, 0),
        // A kind that does not exist here.
        vec![0x30, 4, 1, 2],
        local_apic_address(0x1_fee0_0000),
    ])
}

fn sample_dmar() -> Vec<u8> {
    dmar(
        39,
        1,
        &[
            drhd(
                false,
                2,
                1,
                0xfed9_0000,
                &[scope(1, 0, 3, &[(2, 0), (31, 7)])],
            ),
            drhd(
                true,
                0,
                0,
                0xfed9_1000,
                &[scope(3, 8, 0xf0, &[(31, 0)]), scope(9, 1, 0, &[(0, 0)])],
            ),
            rmrr(0, 0xd000_0000, 0xd00f_ffff, &[scope(2, 0, 0, &[(28, 0)])]),
            atsr(true, 0, &[]),
            rhsa(0xfed9_1000, 3),
            andd(7, "\\_SB.X"),
            vec![0x99, 0, 4, 0],
        ],
    )
}

fn what<T: std::fmt::Debug>(result: Result<T, Problem>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn interrupt_controllers_are_read() {
    let madt = Madt::parse(&sample_madt()).unwrap();
    let expected = Madt {
        local_apic_address: 0x1_fee0_0000,
        has_8259: true,
        processors: vec![
            LocalApic {
                uid: 0,
                apic_id: 0,
                enabled: true,
            },
            LocalApic {
                uid: 1,
                apic_id: 2,
                enabled: false,
            },
            LocalApic {
                uid: 300,
                apic_id: 0x1ff,
                enabled: true,
            },
        ],
        io_apics: vec![IoApic {
            id: 4,
            address: 0xfec0_0000,
            gsi_base: 24,
        }],
        overrides: vec![Override {
            source: 9,
            gsi: 20,
            flags: 0xd,
        }],
        nmis: vec![
            Nmi::Pin { gsi: 30, flags: 5 },
            Nmi::Local {
                uid: None,
                lint: 1,
                flags: 5,
            },
            Nmi::Local {
                uid: Some(300),
                lint: 0,
                flags: 0,
            },
        ],
    };
    assert_eq!(madt, expected);
}

#[test]
fn remapping_units_are_read() {
    let dmar = Dmar::parse(&sample_dmar()).unwrap();
    assert_eq!(
        (
            dmar.address_bits,
            dmar.interrupt_remapping,
            dmar.x2apic_opt_out
        ),
        (39, true, false)
    );
    let [first, second] = dmar.units.as_slice() else {
        panic!("{dmar:?}")
    };
    assert_eq!(
        (first.segment, first.registers.size(), first.includes_all),
        (1, 0x4000, false)
    );
    assert_eq!(first.scopes[0].to_string(), "endpoint 03:02.0/1f.7");
    assert_eq!(second.registers.start(), 0xfed9_1000);
    assert_eq!(second.scopes[0].to_string(), "I/O APIC 8 at f0:1f.0");
    assert_eq!(second.scopes[1].kind, dmar::ScopeKind::Unknown(9));
    assert_eq!(dmar.reserved[0].span.to_string(), "0xd0000000-0xd00fffff");
    assert!(dmar.ats[0].all);
    assert_eq!(dmar.proximity, [(0xfed9_1000, 3)]);
    assert_eq!(dmar.namespace, [(7, "\\\\_SB.X".to_owned())]);
}

#[test]
fn limits_within_a_page_reserve_the_page() {
    let table = dmar(39, 0, &[rmrr(0, 0x1010, 0x2fef, &[])]);
    let dmar = Dmar::parse(&table).unwrap();
    assert_eq!(dmar.reserved[0].span.to_string(), "0x1000-0x2fff");
}

#[test]
fn configuration_space_is_read() {
    let table = mcfg(&[(0xe000_0000, 0, 0, 0xff), (0x40_0000_0000, 2, 0x40, 0x7f)]);
    let mcfg = Mcfg::parse(&table).unwrap();
    assert_eq!(mcfg.regions[0].span.to_string(), "0xe0000000-0xefffffff");
    assert_eq!(
        mcfg.regions[1].span.to_string(),
        "0x4004000000-0x4007ffffff"
    );
    assert_eq!(mcfg.regions[1].base(), 0x40_0000_0000);
    assert_eq!(Mcfg::parse(&super::tests::mcfg(&[])).unwrap().regions, []);
}

#[test]
fn power_management_is_read() {
    let port = |port, length| {
        Some(Register {
            place: Place::Port(port),
            length,
        })
    };
    let new = Fadt::parse(&fadt(276, 0x600)).unwrap();
    assert_eq!(
        (new.pm_timer, new.pm_timer_has_32_bits),
        (port(0x608, 4), true)
    );
    assert_eq!((new.pm1a_event, new.pm1b_event), (port(0x600, 4), None));
    assert_eq!(
        (new.pm1a_control, new.smi_command),
        (port(0x604, 2), port(0xb2, 1))
    );
    assert_eq!((new.reset, new.reset_value), (port(0xcf9, 1), 6));
    assert_eq!((new.interrupt, new.century), (9, Some(0x32)));
    assert_eq!(new.general_events, [port(0x620, 16).unwrap()]);
    // The first revision has the same registers, and no reset.
    let old = Fadt::parse(&fadt(116, 0x600)).unwrap();
    assert_eq!(
        (old.pm_timer, old.pm1a_control),
        (new.pm_timer, new.pm1a_control)
    );
    assert_eq!(old.reset, None);
    assert_eq!(
        what(Fadt::parse(&fadt(112, 0x600))),
        "ACPI table FACP: it ends within the field at offset 112"
    );
}

#[test]
fn a_timer_in_memory_is_read() {
    let mut bytes = fadt(276, 0x600);
    bytes[208..220].copy_from_slice(&generic(0, 32, 0xfed0_8000));
    bytes[116..128].copy_from_slice(&generic(2, 8, 0x44));
    mend_checksum(&mut bytes);
    let fadt = Fadt::parse(&bytes).unwrap();
    assert_eq!(fadt.pm_timer.unwrap().place, Place::Memory(0xfed0_8000));
    assert_eq!(fadt.reset.unwrap().place, Place::Other(2, 0x44));
}

#[test]
fn headers_are_checked() {
    let good = sample_madt();
    let damaged = |place: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[place] = value;
        what(Madt::parse(&bytes))
    };
    assert_eq!(
        damaged(0, b'X'),
        "ACPI table APIC: its signature is \"XPIC\""
    );
    assert_eq!(
        damaged(5, 0x40),
        format!(
            "ACPI table APIC: it claims {} bytes, and has {}",
            0x4000 | good.len(),
            good.len()
        )
    );
    assert_eq!(
        damaged(20, good[20].wrapping_add(3)),
        "ACPI table APIC: its bytes add up to 0x3 instead of 0"
    );
    assert_eq!(
        what(Madt::parse(b"APIC")),
        "ACPI table APIC: 4 bytes are no table"
    );
    let mut short = good.clone();
    short[4..8].copy_from_slice(&20_u32.to_le_bytes());
    assert_eq!(
        what(Madt::parse(&short)),
        format!(
            "ACPI table APIC: it claims 20 bytes, and has {}",
            good.len()
        )
    );
    // What stands behind the table is not read.
    let mut long = good.clone();
    long.extend([0xff; 16]);
    assert_eq!(Madt::parse(&long), Madt::parse(&good));
}

#[test]
fn structures_are_checked() {
    for (structure, text) in [
        (
            vec![0, 0],
            "the structure at offset 44 has an impossible length",
        ),
        (
            vec![0, 1],
            "the structure at offset 44 has an impossible length",
        ),
        (
            vec![0, 9, 0, 0, 0, 0, 0, 0],
            "the structure at offset 44 has an impossible length",
        ),
        (
            vec![0],
            "the structure at offset 44 has an impossible length",
        ),
        (
            vec![9, 8, 0, 0, 0, 0, 0, 0],
            "structure of type 9 at offset 44: 8 bytes are too short",
        ),
    ] {
        assert_eq!(
            what(Madt::parse(&madt(&[structure]))),
            format!("ACPI table APIC: {text}")
        );
    }
    for (structure, text) in [
        (
            drhd(true, 0, 0, 0, &[]),
            "structure of type 0 at offset 48: registers at 0x0 can't be",
        ),
        (
            drhd(true, 15, 0, 0xffff_ffff_ffff_f000, &[]),
            "structure of type 0 at offset 48: registers at 0xfffffffffffff000 can't be",
        ),
        (
            rmrr(0, 0x2000, 0x1fff, &[]),
            "structure of type 1 at offset 48: memory from 0x2000 to 0x1fff can't be",
        ),
        (
            drhd(true, 0, 0, 0x1000, &[scope(1, 0, 0, &[])]),
            "structure of type 1 at offset 64: its path is not pairs of device and function",
        ),
        (
            drhd(true, 0, 0, 0x1000, &[scope(1, 0, 0, &[(32, 0)])]),
            "structure of type 1 at offset 64: its path has a device or function that can't be",
        ),
        (
            drhd(true, 0, 0, 0x1000, &[vec![1, 200]]),
            "the structure at offset 64 has an impossible length",
        ),
    ] {
        assert_eq!(
            what(Dmar::parse(&dmar(39, 0, &[structure]))),
            format!("ACPI table DMAR: {text}")
        );
    }
    for region in [
        (0, 0, 0, 0xff),
        (0xe000_1000, 0, 0, 0xff),
        (0xe000_0000, 0, 9, 8),
        (u64::MAX << 20, 0, 0, 0xff),
    ] {
        assert_eq!(
            what(Mcfg::parse(&mcfg(&[region]))),
            "ACPI table MCFG: entry 0 makes no sense"
        );
    }
    assert_eq!(
        what(Mcfg::parse(&table("MCFG", 1, &[0; 20]))),
        "ACPI table MCFG: it ends within an entry"
    );
}

/// A table cut off at `length`, with a header that agrees.
fn cut(bytes: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = bytes[..length].to_vec();
    bytes[4..8].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
    mend_checksum(&mut bytes);
    bytes
}

#[test]
fn tables_cut_off_at_any_byte_are_read_or_refused_by_name() {
    fn check<T>(bytes: &[u8], name: &str, parse: fn(&[u8]) -> Result<T, Problem>) {
        let mut refused = 0;
        for length in 0..bytes.len() {
            let plain = parse(&bytes[..length]).err().expect("its length is wrong");
            assert_eq!(plain.subject(), format!("ACPI table {name}"));
            if length >= 36
                && let Err(problem) = parse(&cut(bytes, length))
            {
                assert_eq!(problem.subject(), plain.subject());
                refused += 1;
            }
        }
        assert!(refused > 10, "{name}");
    }
    check(&sample_madt(), "APIC", Madt::parse);
    check(&sample_dmar(), "DMAR", Dmar::parse);
    check(&mcfg(&[(0xe000_0000, 0, 0, 0xff)]), "MCFG", Mcfg::parse);
    check(&fadt(276, 0x600), "FACP", Fadt::parse);
}

fn parse_all(bytes: &[u8]) {
    let _ = Madt::parse(bytes);
    let _ = Dmar::parse(bytes);
    let _ = Mcfg::parse(bytes);
    let _ = Fadt::parse(bytes);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        parse_all(&bytes);
    }

    #[test]
    fn any_body_is_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..256)) {
        for signature in ["APIC", "DMAR", "MCFG", "FACP"] {
            parse_all(&table(signature, 1, &body));
        }
    }

    #[test]
    fn damaged_tables_are_read_or_refused(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        for mut bytes in [sample_madt(), sample_dmar(), fadt(276, 0x600)] {
            for (place, value) in &damage {
                // Behind the header, so that more than the header is tried.
                let place = 36 + place.index(bytes.len() - 36);
                bytes[place] = *value;
            }
            mend_checksum(&mut bytes);
            parse_all(&bytes);
        }
    }
}
