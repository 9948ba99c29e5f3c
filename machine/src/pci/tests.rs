//! Tests of configuration space, of BARs and of addresses.

use proptest::prelude::*;

use super::read::{parse_config, parse_resources};
use super::*;
use crate::problem::Problem;
use crate::testing::pci::{ENDPOINT, ROOT_PORT, TestFunction};

const PATH: &str = "/config";

fn parse(config: &[u8]) -> Result<Function, Problem> {
    parse_config(PATH, "0000:00:03.0".parse().unwrap(), config)
}

fn what(config: &[u8]) -> String {
    parse(config).unwrap_err().to_string()
}

fn endpoint() -> TestFunction {
    TestFunction::new("0000:00:03.0", 0x8086, 0x10d3, 0x02_0000)
        .power_management()
        .msi(3)
        .msi_x(2048, 4, 0x2000)
        .express(ENDPOINT, true)
        .extended(0x0001, &[0; 0x44])
        .acs(true)
        .serial_number()
}

#[test]
fn addresses_are_read_and_written() {
    let address: Address = "0001:80:1f.7".parse().unwrap();
    assert_eq!(
        (
            address.segment,
            address.bus,
            address.device,
            address.function
        ),
        (1, 0x80, 31, 7)
    );
    assert_eq!(address.requester_id(), 0x80ff);
    assert_eq!(address.to_string(), "0001:80:1f.7");
    assert_eq!(
        "00:03.0".parse::<Address>().unwrap().to_string(),
        "0000:00:03.0"
    );
    for text in [
        "",
        "3.0",
        "00:20.0",
        "00:03.8",
        "10000:00:03.0",
        "0:0:00:03.0",
        "00:+3.0",
        "00:03",
        "00:03.0 ",
    ] {
        assert!(text.parse::<Address>().is_err(), "{text}");
    }
}

#[test]
fn capabilities_are_found() {
    let function = parse(&endpoint().config).unwrap();
    assert_eq!(
        (function.id(), function.class, function.subsystem),
        ("8086:10d3".to_owned(), 0x02_0000, Some((0x1af4, 0x1100)))
    );
    let capabilities = &function.capabilities;
    assert_eq!(
        capabilities.msi,
        Some(Msi {
            vectors: 8,
            has_64_bits: true,
            maskable: true
        })
    );
    let msi_x = MsiX {
        vectors: 2048,
        table_bar: 4,
        table_offset: 0x2000,
        pending_bar: 4,
        pending_offset: 0x3000,
    };
    assert_eq!(capabilities.msi_x, Some(msi_x));
    assert_eq!(capabilities.express, Some(PortKind::Endpoint));
    assert!(capabilities.function_level_reset);
    assert_eq!(
        capabilities.acs,
        Some(Acs {
            capability: 0x5f,
            control: 0x1d
        })
    );
    let list = capabilities
        .all
        .iter()
        .map(|it| (it.id, it.extended, it.offset, it.length));
    assert_eq!(
        list.collect::<Vec<_>>(),
        [
            (0x01, false, 0x40, 8),
            (0x05, false, 0x48, 24),
            (0x11, false, 0x60, 12),
            (0x10, false, 0x6c, 0x3c),
            (0x01, true, 0x100, 0x48),
            (0x0d, true, 0x148, 8),
            (0x03, true, 0x150, 12),
        ]
    );
}

#[test]
fn bridges_are_told_from_devices() {
    let bridge = TestFunction::new("0000:00:1c.0", 0x8086, 0x8c10, 0x06_0400)
        .multifunction()
        .bridge(2, 5);
    let bridge = parse(&bridge.express(ROOT_PORT, false).config).unwrap();
    assert_eq!(
        bridge.bridge,
        Some(Bridge {
            primary: 0,
            secondary: 2,
            subordinate: 5
        })
    );
    assert_eq!(
        (
            bridge.header_type,
            bridge.is_multifunction,
            bridge.subsystem
        ),
        (1, true, None)
    );
    assert_eq!(bridge.capabilities.express, Some(PortKind::RootPort));
}

#[test]
fn lists_that_make_no_sense_are_told() {
    let good = endpoint().config;
    let damaged = |place: usize, value: u8| {
        let mut config = good.clone();
        config[place] = value;
        what(&config)
    };
    assert_eq!(
        damaged(0x34, 0x20),
        "/config: its list of capabilities leads to 0x20"
    );
    assert_eq!(
        damaged(0x6d, 0x48),
        "/config: its list of capabilities is a circle at 0x48"
    );
    assert_eq!(
        damaged(0x41, 0x41),
        "/config: its list of capabilities is a circle at 0x40"
    );
    // 0x100 → 0x148 → 0x150 → 0x148.
    let mut circle = good.clone();
    circle[0x152..0x154].copy_from_slice(&[0x81, 0x14]);
    assert_eq!(
        what(&circle),
        "/config: its list of extended capabilities is a circle at 0x148"
    );
    circle[0x152..0x154].copy_from_slice(&[0x01, 0x04]);
    assert_eq!(
        what(&circle),
        "/config: its list of extended capabilities leads to 0x40"
    );
    // MSI-X at the end of standard configuration space, which ends there.
    let mut cut = TestFunction::new("0000:00:03.0", 1, 2, 0)
        .power_management()
        .config;
    cut[0x41] = 0xf8;
    cut[0xf8] = 0x11;
    assert_eq!(what(&cut), "/config: the capability at 0xf8 is cut off");
    // Without the bit that says so, there is no list.
    let mut none = good.clone();
    none[6] &= !0x10;
    none.truncate(256);
    assert_eq!(parse(&none).unwrap().capabilities, Capabilities::default());
}

#[test]
fn bars_have_sizes_and_kinds() {
    let text = "\
0x00000000f7b00000 0x00000000f7bfffff 0x0000000000040200
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x000000000000d000 0x000000000000d01f 0x0000000000040101
0x0000003800000000 0x0000003fffffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000003fff 0x0000000000040200
0x00000000f7d00000 0x00000000f7d7ffff 0x0000000000046200
0x0000000000000000 0x0000000000000000 0x0000000000000000
";
    let (bars, rom) = parse_resources("/resource", text).unwrap();
    let bar = |index, kind, prefetchable, start, size| Bar {
        index,
        kind,
        prefetchable,
        span: Span::sized(start, size).unwrap(),
    };
    assert_eq!(
        bars,
        [
            bar(0, BarKind::Memory32, false, 0xf7b0_0000, 1 << 20),
            bar(2, BarKind::Io, false, 0xd000, 32),
            bar(3, BarKind::Memory64, true, 0x38_0000_0000, 32 << 30),
            bar(5, BarKind::Memory32, false, 0, 16 << 10),
        ]
    );
    assert_eq!(rom, Span::sized(0xf7d0_0000, 512 << 10));
}

#[test]
fn paths_lead_over_bridges() {
    let mut bridge = parse(
        &TestFunction::new("0000:00:03.0", 1, 2, 0x06_0400)
            .bridge(7, 8)
            .config,
    )
    .unwrap();
    bridge.address = "00:1c.2".parse().unwrap();
    let pci = Pci {
        functions: vec![bridge],
        ..Pci::default()
    };
    let at = |text: &str| Some(text.parse::<Address>().unwrap());
    assert_eq!(pci.resolve(0, 0, &[(0x1c, 2)]), at("00:1c.2"));
    assert_eq!(pci.resolve(0, 0, &[(0x1c, 2), (1, 1)]), at("07:01.1"));
    assert_eq!(pci.resolve(0, 9, &[(1, 1)]), at("09:01.1"));
    assert_eq!(pci.resolve(0, 0, &[(0x1d, 0), (1, 1)]), None);
    assert_eq!(pci.resolve(1, 0, &[(0x1c, 2), (1, 1)]), None);
    assert_eq!(pci.resolve(0, 0, &[]), None);
    let bridge = at("00:1c.2").unwrap();
    assert!(pci.is_at_or_behind(at("08:00.0").unwrap(), bridge));
    assert!(!pci.is_at_or_behind(at("09:00.0").unwrap(), bridge));
    assert!(!pci.is_at_or_behind(at("0001:07:00.0").unwrap(), bridge));
}

proptest! {
    #[test]
    fn any_configuration_space_is_read_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 4096),
        is_small in any::<bool>(),
    ) {
        let _ = parse(if is_small { &bytes[..256] } else { &bytes });
    }

    #[test]
    fn damaged_configuration_space_is_read_or_refused(
        damage in proptest::collection::vec((0_usize..0x180, any::<u8>()), 1..8)
    ) {
        let mut config = endpoint().config;
        for (place, value) in damage {
            config[place] = value;
        }
        if let Ok(function) = parse(&config) {
            for capability in &function.capabilities.all {
                prop_assert!(u32::from(capability.offset) + u32::from(capability.length) <= 4096);
            }
        }
    }

    #[test]
    fn any_bridges_are_grouped(
        buses in proptest::collection::vec((0_u8..4, 0_u8..4, 0_u8..3, 0_u8..6, any::<bool>()), 0..24)
    ) {
        // Bridges in circles and on buses that are not there as well.
        let functions = buses.into_iter().map(|(bus, secondary, function, kind, has_acs)| {
            let mut it = TestFunction::new("0000:00:00.0", 1, 2, 0).bridge(secondary, 4);
            if kind > 0 {
                it = it.express(kind + 3, false);
            }
            if has_acs {
                it = it.acs(true);
            }
            let mut it = parse(&it.config).unwrap();
            it.address = Address { segment: 0, bus, device: 0, function };
            it
        });
        let mut functions: Vec<Function> = functions.collect();
        functions.sort_by_key(|it| it.address);
        functions.dedup_by_key(|it| it.address);
        let count = functions.len();
        let mut pci = Pci { functions, ..Pci::default() };
        pci.assign_groups(&vec![None; count]);
        let most = u32::try_from(count).unwrap();
        prop_assert!(pci.functions.iter().all(|it| it.group < most.max(1)));
    }
}
