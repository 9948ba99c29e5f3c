//! Clocks: the time stamp counter and the APIC's timer.

use super::Facts;
use super::facts::{Cpu, Feature, Register, msr};
use super::row::{Census, Group, Question, Row, cpus};

pub(super) const HAS_ADJUST: Feature = Feature(7, 0, Register::Ebx, 1);
const INVARIANT: Feature = Feature(0x8000_0007, 0, Register::Edx, 8);
const DEADLINE: Feature = Feature(1, 0, Register::Ecx, 24);
const ALWAYS_RUNNING: Feature = Feature(6, 0, Register::Eax, 2);

const STEADY: Question = Group::RealTime.wanted(
    "tsc_invariant",
    "invariant TSC",
    "Cells tell the time by it; it must not change its rate with the frequency, or stop in sleep.",
);
const IN_STEP: Question = Group::RealTime.wanted(
    "tsc_equal",
    "TSC equal on all CPUs",
    "CPUs of one cell compare their times.",
);
const RATE: Question = Group::RealTime.wanted(
    "tsc_frequency",
    "TSC frequency from CPUID",
    "A cell that reads it need not measure.",
);
const TIMER: Question = Group::RealTime.wanted(
    "tsc_deadline",
    "TSC-deadline timer",
    "A cell sets its timer to the cycle.",
);
const AWAKE: Question = Group::RealTime.wanted(
    "apic_timer_always_runs",
    "APIC timer runs in sleep",
    "A cell that halts is woken by it.",
);
const SOURCE: Question = Group::RealTime.wanted(
    "clock_source",
    "TSC is Linux' clock",
    "Linux has judged by its own measurements whether the TSC can be trusted.",
);

pub(super) fn rows(facts: &Facts, rows: &mut Vec<Row>) {
    rows.push(STEADY.on_all(
        &facts.census_of(INVARIANT),
        "Keep the frequency fixed (governor `performance`, no turbo), and let no CPU sleep deeply.",
    ));
    rows.push(in_step(facts));
    rows.push(rate(facts));
    rows.push(TIMER.on_all(
        &facts.census_of(DEADLINE),
        "Let the cell use the APIC timer's own count; the runtime that comes with Gaol wants the deadline.",
    ));
    rows.push(AWAKE.on_all(
        &facts.census_of(ALWAYS_RUNNING),
        "Let the cell wait without halting.",
    ));
    rows.push(match &facts.linux.clock_source {
        Err(problem) => SOURCE.unknown(problem),
        Ok(None) => SOURCE.undecided("Linux does not tell", "Mount /sys."),
        Ok(Some(name)) if name == "tsc" => SOURCE.ok("tsc"),
        Ok(Some(name)) if name == "tsc-early" => SOURCE.undecided(
            "not yet: Linux still measures it",
            "Ask again when Linux has been up for half a minute.",
        ),
        Ok(Some(name)) => SOURCE.bad(
            format!("no: Linux uses {name:?}"),
            "See `dmesg | grep -i tsc` for what Linux found wrong with the TSC.",
        ),
    });
}

fn in_step(facts: &Facts) -> Row {
    match facts.census_of(HAS_ADJUST) {
        Census::All(_) => {}
        Census::Unknown(problem) => return IN_STEP.unknown(&problem),
        Census::Not { .. } => {
            return IN_STEP.undecided(
                "not known: the processor does not tell its adjustment (no IA32_TSC_ADJUST)",
                "See whether Linux uses the TSC as its clock: it has compared the CPUs.",
            );
        }
    }
    let adjust = |cpu: &Cpu| cpu.msr(msr::TSC_ADJUST);
    let first = match facts.cpus.first().map(adjust) {
        Some(Ok(value)) => value,
        Some(Err(problem)) => return IN_STEP.unknown(&problem),
        None => 0,
    };
    match facts.census(|cpu| Ok(adjust(cpu)? == first)) {
        Census::All(number) => IN_STEP.ok(format!(
            "IA32_TSC_ADJUST is {} {}",
            first.cast_signed(),
            super::row::on_all(number)
        )),
        Census::Not { lacking, .. } => IN_STEP.bad(
            format!(
                "IA32_TSC_ADJUST of {} is another than of CPU {}",
                cpus(&lacking),
                facts.cpus.first().map_or(0, |cpu| cpu.number)
            ),
            "Update the firmware, which has set them apart; else give such CPUs to different cells.",
        ),
        Census::Unknown(problem) => IN_STEP.unknown(&problem),
    }
}

/// SDM, "Determining the Processor Base Frequency": crystal * numerator / denominator.
fn rate(facts: &Facts) -> Row {
    let entry = match facts.first_cpuid() {
        Ok(cpuid) => cpuid.get(0x15, 0),
        Err(problem) => return RATE.unknown(&problem),
    };
    let hertz = u64::from(entry.ecx)
        .checked_mul(entry.ebx.into())
        .and_then(|product| product.checked_div(entry.eax.into()));
    match (hertz, entry.eax, entry.ebx) {
        (Some(hertz), _, _) if hertz != 0 => RATE.ok(format!(
            "{}.{:03} MHz",
            hertz / 1_000_000,
            hertz / 1000 % 1000
        )),
        (Some(_), 1.., 1..) => RATE.bad(
            "only the ratio to a crystal of unknown frequency",
            "Nothing: Gaol takes the frequency that Linux has measured.",
        ),
        _ => RATE.bad(
            "none (leaf 0x15)",
            "Nothing: Gaol takes the frequency that Linux has measured.",
        ),
    }
}
