//! What Linux touches although it owns it not: it gets what bare hardware would give, is counted, and runs on.

use anyhow::{Context as _, Result, ensure};
use gaol_abi::image::Vendor;

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::machine::Platform;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "root",
    machine: usual,
    prepare: |context| {
        load_modules(context)?;
        context.machine.check("insmod /root/gaol-bench.ko")?;
        context.enable()
    },
    except: &[],
    checks: &[
        Check {
            name: "the-hypervisors-memory-reads-as-ones",
            run: hypervisor_memory,
        },
        Check {
            name: "a-cells-memory-reads-as-ones",
            run: cell_memory,
        },
        Check {
            name: "a-cells-memory-comes-back-scrubbed",
            run: scrubbed,
        },
        Check {
            name: "linux-cannot-see-virtualization-in-use",
            run: hidden,
        },
        Check {
            name: "dangerous-registers-are-shadowed",
            run: shadowed_registers,
        },
        Check {
            name: "suspend-is-refused",
            run: suspend,
        },
        Check {
            name: "exits-are-counted-by-reason",
            run: counters,
        },
    ],
};

/// Asserts that reads of this page give ones and that a write does not stick; returns how often Linux was overruled.
fn assert_ones(context: &mut Context, address: u64) -> Result<()> {
    for (kind, ones) in [
        ("r8", 0xff),
        ("r16", 0xffff),
        ("r32", 0xffff_ffff),
        ("r64", u64::MAX),
    ] {
        let value = context
            .poke(&format!("{kind} {address:x}"))?
            .context("the access faulted")?;
        ensure!(value == ones, "{kind} at {address:#x} reads {value:#x}");
    }
    for kind in ["w8", "w16", "w32", "w64"] {
        context.poke(&format!("{kind} {address:x} 0"))?;
        let value = context
            .poke(&format!("r64 {address:x}"))?
            .context("the access faulted")?;
        ensure!(value == u64::MAX, "{kind} at {address:#x} was written");
    }
    Ok(())
}

fn hypervisor_memory(context: &mut Context) -> Result<()> {
    let (physical, size) = context.region()?;
    let before = context.machine.exits("0")?;
    for address in [physical, physical + size / 2 + 8, physical + size - 8] {
        assert_ones(context, address)?;
    }
    let after = context.machine.exits("0")?;
    let violations = |exits: &std::collections::BTreeMap<String, u64>| {
        exits
            .get(context.platform.memory_exit())
            .copied()
            .unwrap_or(0)
    };
    ensure!(
        violations(&after) >= violations(&before) + 12,
        "the writes were not counted: {before:?} became {after:?}"
    );
    context.machine.linux_is_well(CPUS)
}

/// Where a region of a cell is, from sysfs.
pub(super) fn cell_region(context: &mut Context, cell: &str, region: &str) -> Result<u64> {
    let text = context.machine.check(&format!(
        "for cell in /sys/devices/gaol/cells/*; do [ \"$(cat $cell/name)\" = {cell} ] && cat $cell/memory; done; :"
    ))?;
    text.lines()
        .find_map(|line| {
            let mut fields = line.split_whitespace();
            let name = fields.next()?;
            let physical = fields.next()?;
            (name == region)
                .then(|| u64::from_str_radix(physical.trim_start_matches("0x"), 16).ok())?
        })
        .with_context(|| format!("sysfs does not show the region `{region}`: {text}"))
}

fn cell_memory(context: &mut Context) -> Result<()> {
    context.start_cell("hello", "every=200ms")?;
    let ram = cell_region(context, "hello", "ram")?;
    assert_ones(context, ram)?;
    context.wait_console("hello: ")?;
    context.machine.gaol("cell destroy hello")?;
    context.machine.linux_is_well(CPUS)
}

fn scrubbed(context: &mut Context) -> Result<()> {
    context.start_cell("hello", "every=200ms")?;
    let ram = cell_region(context, "hello", "ram")?;
    context.wait_console("hello: ")?;
    context.machine.gaol("cell destroy hello")?;
    // Linux may use it again at once, but not for the first instructions of the cell's image.
    let image = context
        .machine
        .check("hexdump -v -n 64 -e '1/4 \"%x \"' hello.bin")?;
    let image: Vec<u64> = image
        .split_whitespace()
        .map(|word| u64::from_str_radix(word, 16))
        .collect::<Result<_, _>>()?;
    ensure!(
        image.iter().filter(|word| **word != 0).count() > 4,
        "the image starts with zeros: {image:x?}"
    );
    for (index, word) in image.iter().enumerate() {
        let address = ram + 4 * index as u64;
        let found = context
            .poke(&format!("r32 {address:x}"))?
            .context("the access faulted")?;
        ensure!(
            found != *word || found == 0,
            "the cell's image is still at {address:#x}, in memory that Linux got back"
        );
    }
    context.machine.linux_is_well(CPUS)
}

fn hidden(context: &mut Context) -> Result<()> {
    let (register, bit) = match context.platform.vendor() {
        Vendor::Svm => ("msr_efer", 1 << 12),
        _ => ("cr4", 1 << 13),
    };
    let text = context
        .machine
        .check(&format!("grep ' {register} ' /proc/gaol-test/state"))?;
    for line in text.lines() {
        let value = line.rsplit(' ').next().unwrap_or_default();
        let value: u64 = u64::from_str_radix(value, 16)?;
        ensure!(value & bit == 0, "Linux sees virtualization in use: {line}");
    }
    ensure!(text.lines().count() == CPUS as usize, "{text}");
    Ok(())
}

impl Context {
    /// Makes one access through the test module on CPU 0, where one follows the other.
    fn poke_first(&mut self, access: &str) -> Result<Option<u64>> {
        let text = self.machine.check(&format!(
            "taskset 1 sh -c 'echo {access} >/proc/gaol-test/poke && cat /proc/gaol-test/poke'"
        ))?;
        Ok(text
            .trim()
            .strip_prefix("ok ")
            .map(|value| u64::from_str_radix(value, 16))
            .transpose()?)
    }
}

fn shadowed_registers(context: &mut Context) -> Result<()> {
    const APIC_BASE: u32 = 0x1b;
    let base = context
        .poke_first(&format!("rdmsr {APIC_BASE:x}"))?
        .context("the APIC's base can't be read")?;
    for (changed, what) in [
        (base ^ 1 << 11, "switched off"),
        (base ^ 1 << 10, "in the other mode"),
        (base ^ 1 << 20, "elsewhere"),
    ] {
        let written = context.poke_first(&format!("wrmsr {APIC_BASE:x} {changed:x}"))?;
        ensure!(written.is_none(), "the APIC could be {what}");
    }
    let same = context.poke_first(&format!("wrmsr {APIC_BASE:x} {base:x}"))?;
    ensure!(same.is_some(), "the same value was refused");
    ensure!(
        context.poke_first(&format!("rdmsr {APIC_BASE:x}"))? == Some(base),
        "the APIC's base has changed"
    );
    // Memory types: what was written is read back. A type of everything that is uncacheable would stop the machine.
    for (register, other) in [(0x200u32, 0x3_0000_0000u64), (0x250, 0x0101_0101_0101_0101)] {
        let before = context
            .poke_first(&format!("rdmsr {register:x}"))?
            .context("the memory types can't be read")?;
        ensure!(before != other, "the test writes what is there already");
        context.poke_first(&format!("wrmsr {register:x} {other:x}"))?;
        let kept = context.poke_first(&format!("rdmsr {register:x}"))?;
        ensure!(kept == Some(other), "{register:#x} reads {kept:x?}");
        let illegal = context.poke_first(&format!("wrmsr {register:x} 2"))?;
        ensure!(
            illegal.is_none(),
            "{register:#x} took a type that there is not"
        );
        context.poke_first(&format!("wrmsr {register:x} {before:x}"))?;
    }
    // Microcode, cache ways, processor trace: no fault and no effect.
    for register in [0x79u32, 0xc90, 0xd10, 0xd50, 0x570] {
        let written = context.poke_first(&format!("wrmsr {register:x} 1"))?;
        ensure!(
            written.is_some(),
            "writing {register:#x} raised an exception"
        );
        let seen = context.poke_first(&format!("rdmsr {register:x}"))?;
        ensure!(seen != Some(1), "{register:#x} was written");
    }
    let hidden: &[u32] = match context.platform.vendor() {
        // VM_CR and VM_HSAVE_PA.
        Vendor::Svm => &[0xc001_0117],
        _ => &[0x480, 0x48b, 0x491],
    };
    for register in hidden {
        ensure!(
            context
                .poke_first(&format!("rdmsr {register:x}"))?
                .is_none(),
            "Linux sees virtualization in {register:#x}"
        );
    }
    let refused: &[u32] = match context.platform.vendor() {
        Vendor::Svm => &[0xc001_0117],
        _ => &[0x3a, 0x150, 0x1f2, 0x480],
    };
    for register in refused {
        ensure!(
            context
                .poke_first(&format!("wrmsr {register:x} 1"))?
                .is_none(),
            "Linux may write {register:#x}"
        );
    }
    context.machine.linux_is_well(CPUS)
}

fn suspend(context: &mut Context) -> Result<()> {
    let states = context.machine.check("cat /sys/power/state")?;
    ensure!(states.contains("freeze"), "Linux offers only {states:?}");
    for state in states.split_whitespace() {
        let output = context
            .machine
            .run(&format!("echo {state} >/sys/power/state"))?;
        ensure!(output.status != 0, "Linux went into `{state}`");
    }
    ensure!(
        context.sysfs_number("enabled")? == 1,
        "it is not enabled any more"
    );
    context.machine.linux_is_well(CPUS)
}

fn counters(context: &mut Context) -> Result<()> {
    let before = context.machine.exits("0")?;
    let counted = context.machine.check("taskset 1 cat /proc/gaol-bench")?;
    ensure!(counted.contains("hypervisor 1"), "no hypervisor: {counted}");
    let after = context.machine.exits("0")?;
    // The counting module does each of these 2,000 times.
    let all = ["cpuid", "hypercall", "rdmsr", "port", "xsetbv"];
    let names = match context.platform {
        Platform::Bochs | Platform::Kvm => &all[..],
        // It does not intercept XSETBV.
        Platform::Qemu => &all[..4],
    };
    for name in names {
        let (old, new) = (
            before.get(*name).copied().unwrap_or(0),
            after.get(*name).copied().unwrap_or(0),
        );
        ensure!(new >= old + 2000, "{name}: {old} became {new}");
    }
    Ok(())
}
