//! What is fuzzed: a function of bytes for everything that reads bytes from outside.
//!
//! Each panics when what it fuzzes does, and when an answer breaks a promise. libFuzzer drives them through the programs
//! in `fuzz_targets`; the tests drive them over the committed corpus and over [`mutation`]s of it, without libFuzzer.
//!
//! Invariant: the same bytes have the same effect each time, whatever the machine.
#![forbid(unsafe_code)]

pub mod acpi_tables;
pub mod apic_filter;
pub mod configuration_binary;
pub mod configuration_toml;
pub mod hypercall;
pub mod instruction_decoder;
pub mod jailhouse_import;
pub mod machine_collection;
pub mod mutation;
pub mod pci_configuration_space;
pub mod pci_filter;
pub mod vtd_tables;

/// Something to fuzz.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of the program, of the module here and of the directory below `corpus`.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
}

/// All targets, by name.
pub const TARGETS: &[Target] = &[
    Target {
        name: "acpi_tables",
        run: acpi_tables::run,
    },
    Target {
        name: "apic_filter",
        run: apic_filter::run,
    },
    Target {
        name: "configuration_binary",
        run: configuration_binary::run,
    },
    Target {
        name: "configuration_toml",
        run: configuration_toml::run,
    },
    Target {
        name: "hypercall",
        run: hypercall::run,
    },
    Target {
        name: "instruction_decoder",
        run: instruction_decoder::run,
    },
    Target {
        name: "jailhouse_import",
        run: jailhouse_import::run,
    },
    Target {
        name: "machine_collection",
        run: machine_collection::run,
    },
    Target {
        name: "pci_configuration_space",
        run: pci_configuration_space::run,
    },
    Target {
        name: "pci_filter",
        run: pci_filter::run,
    },
    Target {
        name: "vtd_tables",
        run: vtd_tables::run,
    },
];

/// The pieces between separators.
pub(crate) fn pieces<'a>(mut bytes: &'a [u8], separator: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while let Some(end) = position(bytes, separator) {
        let (piece, rest) = bytes.split_at(end);
        pieces.push(piece);
        bytes = &rest[separator.len()..];
    }
    pieces.push(bytes);
    pieces
}

/// Where `wanted` first begins in `bytes`.
pub(crate) fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// Overwrites the bytes from `offset` on, as far as there are any.
pub(crate) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    for (byte, value) in bytes.iter_mut().skip(offset).zip(value) {
        *byte = *value;
    }
}

/// A little-endian number of 32 bits at an offset; 0 beyond the end.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut value = [0; 4];
    for (to, from) in value.iter_mut().zip(bytes.iter().skip(offset)) {
        *to = *from;
    }
    u32::from_le_bytes(value)
}
