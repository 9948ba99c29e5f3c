//! The local APIC: where it is, and its newer mode.

use super::Facts;
use super::facts::{Feature, Register, msr};
use super::row::{Census, Group, Question, Row, cpus};

const X2APIC: Feature = Feature(1, 0, Register::Ecx, 21);

/// IA32_APIC_BASE (SDM, "Local APIC Status and Location").
const ENABLED: u64 = 1 << 11;
const X2APIC_MODE: u64 = 1 << 10;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const USUAL_ADDRESS: u64 = 0xfee0_0000;

const APIC: Question = Question {
    key: "apic",
    name: "local APIC",
    group: Group::Devices,
    is_needed: true,
    reason: "The hypervisor expects it enabled, at its usual address.",
};
const NEWER: Question = Question {
    key: "x2apic",
    name: "x2APIC",
    group: Group::Devices,
    is_needed: false,
    reason: "In this mode a cell has its timer and the end of its interrupts without an exit.",
};

pub(super) fn rows(facts: &Facts, rows: &mut Vec<Row>) {
    let usual = facts.census(|cpu| {
        let base = cpu.msr(msr::APIC_BASE)?;
        Ok(base & ENABLED != 0 && base & ADDRESS == USUAL_ADDRESS)
    });
    rows.push(match usual {
        Census::All(_) => APIC.ok(format!("enabled at {USUAL_ADDRESS:#x}")),
        Census::Not { lacking, .. } => APIC.bad(
            format!("disabled or moved on {}", cpus(&lacking)),
            "Boot Linux without `nolapic` and `disableapic`.",
        ),
        Census::Unknown(problem) => APIC.unknown(&problem),
    });
    let in_use = facts.census(|cpu| Ok(cpu.msr(msr::APIC_BASE)? & X2APIC_MODE != 0));
    rows.push(match facts.census_of(X2APIC) {
        Census::All(number) => NEWER.ok(format!(
            "{}{}",
            super::row::on_all(number),
            match in_use {
                Census::All(_) => ", Linux uses it",
                Census::Not { .. } => ", Linux does not use it",
                Census::Unknown(_) => "",
            }
        )),
        census => NEWER.on_all(
            &census,
            "Nothing: each use of the APIC in a cell costs an exit.",
        ),
    });
}
