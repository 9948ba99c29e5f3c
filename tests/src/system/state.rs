//! What `disable` gives back is what `enable` took, register by register.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "state",
    machine: usual,
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "registers-after-disable-are-those-before-enable",
            run: after_disable,
        },
        Check {
            name: "registers-after-a-failed-launch-are-those-before",
            run: after_failed_launch,
        },
        Check {
            name: "linux-sees-its-own-registers-while-enabled",
            run: while_enabled,
        },
        Check {
            name: "registers-after-a-cell-are-those-before",
            run: after_cell,
        },
    ],
};

/// IA32_FEATURE_CONTROL: VMX inside and outside SMX operation.
const FEATURE_CONTROL_VMX: u64 = 0b110;

/// Linux' __KERNEL_DS.
const KERNEL_DATA_SELECTOR: u64 = 0x18;

/// Registers by CPU and name.
type Registers = BTreeMap<String, u64>;

fn registers(context: &mut Context) -> Result<Registers> {
    let text = context.machine.check("cat /proc/gaol-test/state")?;
    let mut registers = Registers::new();
    for line in text.lines() {
        let (name, value) = line.rsplit_once(' ').context("a line without a value")?;
        let mut value = u64::from_str_radix(value, 16)?;
        // An interrupt out of user mode leaves a null selector in SS, so either may be found.
        if name.ends_with(" ss") && value == KERNEL_DATA_SELECTOR {
            value = 0;
        }
        registers.insert(name.to_owned(), value);
    }
    // Guards against a reading that is empty and thus always equal.
    for cpu in 0..CPUS {
        for name in [
            "cr0",
            "cr4",
            "xcr0",
            "msr_efer",
            "msr_pat",
            "idtr_base",
            "tr_limit",
            "apic_svr",
        ] {
            ensure!(
                registers.contains_key(&format!("cpu{cpu} {name}")),
                "{name} of CPU {cpu} was not read"
            );
        }
    }
    Ok(registers)
}

fn assert_equal(before: &Registers, after: &Registers) -> Result<()> {
    let mut changed = Vec::new();
    for name in before.keys().chain(after.keys()) {
        let (old, new) = (before.get(name), after.get(name));
        let line = format!("{name}: {old:x?} became {new:x?}");
        if old != new && !changed.contains(&line) {
            changed.push(line);
        }
    }
    ensure!(changed.is_empty(), "{}", changed.join("; "));
    Ok(())
}

fn after_disable(context: &mut Context) -> Result<()> {
    let before = registers(context)?;
    context.enable()?;
    context.disable()?;
    assert_equal(&before, &registers(context)?)
}

fn after_failed_launch(context: &mut Context) -> Result<()> {
    let before = registers(context)?;
    for step in 1..=gaol_abi::handover::LAST_LAUNCH_STEP {
        context.machine.refused(
            &format!("enable {} --fail-at {step}:2", super::SYSTEM),
            "failed as it was told to",
        )?;
        assert_equal(&before, &registers(context)?)
            .with_context(|| format!("after a fault at step {step}"))?;
    }
    Ok(())
}

fn while_enabled(context: &mut Context) -> Result<()> {
    let mut before = registers(context)?;
    context.enable()?;
    let within = registers(context)?;
    context.disable()?;
    // But for one: Linux is told that VMX is locked away, so that KVM does not try.
    for (name, value) in &mut before {
        if name.ends_with("msr_feature_control") {
            *value &= !FEATURE_CONTROL_VMX;
        }
    }
    assert_equal(&before, &within)
}

fn after_cell(context: &mut Context) -> Result<()> {
    let before = registers(context)?;
    context.enable()?;
    context.start_cell("hello", "every=200ms")?;
    context.wait_console("hello: ")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()?;
    assert_equal(&before, &registers(context)?)
}
