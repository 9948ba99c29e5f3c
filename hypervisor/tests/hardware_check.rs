//! What `gaol hardware check` takes for needed against what the hypervisor demands.

use gaol_hypervisor::processor::cr4;
use gaol_hypervisor::virt::contract::Capabilities;
use gaol_hypervisor::virt::vmx::capabilities::Controls;
use gaol_machine::hardware::requirements::{
    BASIC, CAPABILITIES, CR4_KNOWN, EPT_VPID, HAS_SVM, MISC, REQUIREMENTS, SECONDARY,
    SECONDARY_CAPABILITIES, TRUE_ENTRY, TRUE_EXIT, TRUE_PIN, TRUE_PRIMARY, fits_page,
    is_write_back,
};

/// The capability MSRs of a Haswell.
fn capability(register: u32) -> u64 {
    match register {
        BASIC => 0x00d8_1000_0000_002b,
        MISC => 0x2004_01e0,
        SECONDARY => 0x0004_7fff_0000_0000,
        EPT_VPID => 0x0f01_0633_4141,
        TRUE_PIN => 0x0000_007f_0000_0016,
        TRUE_PRIMARY => 0xf7f9_fffe_0400_6172,
        TRUE_EXIT => 0x007f_ffff_0003_6dfb,
        TRUE_ENTRY => 0x0000_ffff_0000_11fb,
        _ => 0,
    }
}

/// Whether the hypervisor accepts a processor that differs in one MSR.
fn is_accepted(register: u32, value: u64) -> bool {
    let read = |asked| match asked == register {
        true => value,
        false => capability(asked),
    };
    Controls::detect(|_, _| [0; 4], read).is_ok()
}

/// Whether the requirements are met by such a processor.
fn is_enough(register: u32, value: u64) -> bool {
    let read = |asked| match asked == register {
        true => value,
        false => capability(asked),
    };
    REQUIREMENTS
        .iter()
        .all(|requirement| requirement.is_met(read(requirement.register)))
        && fits_page(read(BASIC))
        && is_write_back(read(BASIC))
}

#[test]
fn every_bit_that_the_hypervisor_demands_is_listed_and_no_other() {
    assert!(is_accepted(0, 0));
    let mut refused = 0;
    for register in 0x480..=0x493 {
        for bit in 0..64 {
            let value = capability(register) ^ (1 << bit);
            let accepted = is_accepted(register, value);
            assert_eq!(
                accepted,
                is_enough(register, value),
                "bit {bit} of MSR {register:#x}"
            );
            refused += usize::from(!accepted);
        }
    }
    // Each requirement is one bit; so are, in the MSR of a Haswell, three of memory type and one of size.
    assert!(refused >= REQUIREMENTS.len(), "{refused}");
}

#[test]
fn size_and_memory_type_of_the_vmcs_are_judged_alike() {
    let rest = capability(BASIC) & !(0x1fff << 32) & !(0xf << 50);
    for size in 0..0x2000 {
        let value = rest | (size << 32) | (6 << 50);
        assert_eq!(is_accepted(BASIC, value), fits_page(value), "{size}");
    }
    for memory_type in 0..16 {
        let value = rest | (4096 << 32) | (memory_type << 50);
        assert_eq!(
            is_accepted(BASIC, value),
            is_write_back(value),
            "{memory_type}"
        );
    }
}

#[test]
fn registers_of_all_requirements_are_read() {
    for requirement in &REQUIREMENTS {
        let register = requirement.register;
        assert!(
            CAPABILITIES.contains(&register) || SECONDARY_CAPABILITIES.contains(&register),
            "{requirement:?}"
        );
    }
}

#[test]
fn control_bits_are_those_that_the_hypervisor_knows() {
    let known = CR4_KNOWN.iter().fold(0, |mask, (bit, _)| mask | 1 << bit);
    assert_eq!(cr4::KNOWN, known);
}

#[test]
fn svm_is_promised_when_there_is_a_hypervisor_for_it() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    assert!(manifest.contains("name = \"gaol-vmx\""));
    assert_eq!(manifest.contains("name = \"gaol-svm\""), HAS_SVM);
}
