//! Interrupts of devices and between CPUs: a cell has its own, all of them and without an exit, and nobody has another's.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::{CPUS, Context, load_modules};
use crate::gaol::Gaol;
use crate::machine::{Platform, Spec};
use crate::qemu::Iommu;
use crate::runner::{Check, Except, Group};

const CELL: &str = "interrupts";
/// Its configuration.
const CONFIGURATION: &str = include_str!("../../../configs/interrupts.toml");
const LINE: u32 = 3;
/// A pin that no device has.
const FREE_PIN: u32 = 20;
const IO_APIC: u64 = 0xfec0_0000;
const MASKED: u64 = 1 << 16;

const LINES: Check = Check {
    name: "lines-of-a-device-without-an-exit",
    run: lines,
};
const ROOT: Check = Check {
    name: "the-root-does-not-reach-a-cells-line-or-cpu",
    run: root,
};
const REMAPPED: &str = "the-root-does-not-reach-them-through-the-iommu";
const NO_IOMMU: &str = "no machine of it has an IOMMU";

pub(super) const GROUP: Group = Group {
    name: "interrupts",
    machine: |spec| Ok(machine(spec)),
    prepare,
    except: &[Except::check(Platform::Bochs, REMAPPED, NO_IOMMU)],
    checks: &[
        LINES,
        ROOT,
        Check {
            name: REMAPPED,
            run: through_the_iommu,
        },
        Check {
            name: "a-line-that-linux-uses-is-refused",
            run: in_use,
        },
        Check {
            name: "cpus-started-by-init-exchange-interrupts",
            run: startup,
        },
    ],
};

/// Where the IOMMU leaves interrupts alone.
pub(super) const NOT_REMAPPED: Group = Group {
    name: "interrupts-without-remapping",
    machine: |spec| {
        let mut spec = machine(spec);
        spec.qemu.iommu = Iommu::Dma;
        Ok(spec)
    },
    prepare,
    except: &[Except::group(Platform::Bochs, NO_IOMMU)],
    checks: &[LINES, ROOT],
};

/// With the cell's device, which nobody opens in Linux.
fn machine(spec: Spec) -> Spec {
    let in_use = CONFIGURATION.replace("interrupts = [3]", "interrupts = [3, 4]");
    let mut spec = spec
        .hardware("com4: enabled=1, mode=null")
        .content("root/in-use.toml", in_use);
    spec.qemu.arguments.extend(
        [
            "-chardev",
            "null,id=nobody",
            "-device",
            "isa-serial,index=3,chardev=nobody",
        ]
        .map(str::to_owned),
    );
    spec
}

fn prepare(context: &mut Context) -> Result<()> {
    load_modules(context)?;
    context.enable()
}

/// Starts the cell and waits until it is through; returns what it has said since.
fn start(context: &mut Context, what: &str) -> Result<String> {
    let before = context.machine.check("gaol console")?.len();
    // Where CPUs share a thread of the host, one waits for the others' turns; and QEMU's APIC takes vectors below 16.
    let more = match context.platform {
        Platform::Bochs | Platform::Kvm => "",
        Platform::Qemu => " patience=1500000000 illegal=0",
    };
    context.start_cell(CELL, &format!("do={what}{more}"))?;
    for _ in 0..300 {
        let console = context.machine.check("gaol console")?;
        let said = console.get(before..).unwrap_or(&console);
        ensure!(!said.contains("cell failed"), "{said}");
        if said.contains("interrupts: done") {
            return Ok(said.to_owned());
        }
        context.machine.check("sleep 0.3")?;
    }
    let said = context.machine.check("gaol console")?;
    anyhow::bail!("the cell did not come to an end: {said}")
}

fn end(context: &mut Context) -> Result<()> {
    context.machine.gaol("cell destroy interrupts --force")?;
    context.machine.linux_is_well(CPUS)
}

fn expect(said: &str, lines: &[&str]) -> Result<()> {
    for line in lines {
        let line = format!("interrupts: {line}");
        ensure!(
            said.lines().any(|other| other.trim() == line),
            "`{line}` is missing in: {said}"
        );
    }
    Ok(())
}

/// Exits of the cell but for those that printing takes.
fn exits(context: &mut Context) -> Result<u64> {
    let exits: BTreeMap<String, u64> = context.machine.exits(CELL)?;
    let counted = exits.iter().filter(|(reason, _)| *reason != "hypercall");
    Ok(counted.map(|(_, count)| count).sum())
}

/// Waits until the cell has had ten thousand interrupts more.
fn wait_for_more(context: &mut Context) -> Result<()> {
    let count = context
        .machine
        .check("gaol console")?
        .matches(" thousand more")
        .count();
    context.wait_console_count(" thousand more", count + 2)
}

fn lines(context: &mut Context) -> Result<()> {
    let said = start(context, "lines")?;
    expect(
        &said,
        &[
            "edges: 1000 of 1000",
            "levels: 1000 of 1000",
            "logical: 10 of 10",
            "everyone: 10 of 10",
            "masked: 0 of 1",
            "refused CPU 0: masked true, 0 came",
            "refused a CPU that does not exist: masked true, 0 came",
            "refused SMI: masked true, 0 came",
            "refused a reserved mode: masked true, 0 came",
            "refused INIT: masked true, 0 came",
            "refused ExtINT: masked true, 0 came",
            "refused an exception's vector: masked true, 0 came",
            "refused a vector of Linux' level: masked true, 0 came",
            "entries of an IOMMU named: 131 of 131",
            "in that format: 10 of 10",
            "foreign pins masked: 6 of 6",
            "again: 10 of 10",
        ],
    )?;
    let before = exits(context)?;
    wait_for_more(context)?;
    let after = exits(context)?;
    let exits = after - before;
    // Without an x2APIC the end of each is one.
    ensure!(
        exits == 0 || !context.platform.has_x2apic(),
        "{exits} exits for ten thousand interrupts"
    );
    end(context)
}

fn write(context: &mut Context, register: u32, value: u32) -> Result<()> {
    context.poke(&format!("w32 {IO_APIC:x} {register:x}"))?;
    context.poke(&format!("w32 {:x} {value:x}", IO_APIC + 0x10))?;
    Ok(())
}

fn read(context: &mut Context, register: u32) -> Result<u64> {
    context.poke(&format!("w32 {IO_APIC:x} {register:x}"))?;
    let value = context.poke(&format!("r32 {:x}", IO_APIC + 0x10))?;
    value.ok_or_else(|| anyhow::anyhow!("the IOAPIC can't be read"))
}

/// Writes an entry to the free pin. Whether it was refused.
fn aim(context: &mut Context, high: u32, value: u32) -> Result<bool> {
    let low = 0x10 + 2 * FREE_PIN;
    write(context, low + 1, high)?;
    write(context, low, value)?;
    let is_masked = read(context, low)? & MASKED != 0;
    write(context, low, MASKED as u32)?;
    Ok(is_masked)
}

/// The cell still gets each interrupt of its line.
fn is_well(context: &mut Context) -> Result<()> {
    wait_for_more(context)?;
    let console = context.machine.check("gaol console")?;
    ensure!(!console.contains("one is missing"), "{console}");
    Ok(())
}

/// Registers of the unit, and what is written to the last one to have it look at the table of interrupts.
const UNIT: u64 = 0xfed9_0000;
const COMMAND: u64 = UNIT + 0x18;
const STATUS: u64 = UNIT + 0x1c;
const INTERRUPT_TABLE: u64 = UNIT + 0xb8;
const SET_INTERRUPT_TABLE: u64 = 1 << 24;
/// The IOAPIC, as the firmware tells the IOMMU, verified.
const OF_IO_APIC: u64 = 0x4_ff00;
/// An entry that Linux does not use.
const FREE_ENTRY: u64 = 200;

/// An entry of a pin that names one of the IOMMU's: its high and its low half.
fn naming(handle: u32, vector: u32) -> (u32, u32) {
    (
        (handle & 0x7fff) << 17 | 1 << 16,
        (handle >> 15) << 11 | vector,
    )
}

fn peek(context: &mut Context, width: u32, at: u64) -> Result<u64> {
    let value = context.poke(&format!("r{width} {at:x}"))?;
    value.ok_or_else(|| anyhow::anyhow!("{at:#x} can't be read"))
}

/// What the list of cells tells of the IOMMUs.
fn figure(context: &mut Context, name: &str) -> Result<u64> {
    let list = context.machine.gaol("cell list")?;
    let figure = list["iommus"][name].as_u64();
    figure.ok_or_else(|| anyhow::anyhow!("{name} is not told: {list}"))
}

/// The IOMMU knows IOAPICs, not pins: Linux' pins could name the entry of the cell's. And Linux has a table of its own.
fn through_the_iommu(context: &mut Context) -> Result<()> {
    start(context, "lines")?;
    let (high, low) = naming(FREE_ENTRY as u32, 0x61);
    ensure!(!aim(context, high, low)?, "an entry of Linux' is refused");
    // Behind the root's entries, whose number is a power of two but for those of the cells, which are 512.
    let mut named = 0;
    for size in 11..=16 {
        let first = (1u32 << size) - 512;
        for handle in first..first + 3 {
            for (handle, vector) in [(handle, 0x51), (handle, FREE_PIN), (handle, 0xf3 | 1 << 15)] {
                let (high, low) = naming(handle, vector);
                ensure!(aim(context, high, low)?, "entry {handle} can be named");
                named += 1;
            }
        }
    }
    ensure!(named == 54);
    let overruled = |context: &mut Context| figure(context, "overruled");
    ensure!(figure(context, "entries")? == 1, "of the cell's line");
    let table = peek(context, 64, INTERRUPT_TABLE)?;
    let entry = (table & !0xfff) + 16 * FREE_ENTRY;
    ensure!(peek(context, 64, entry)? == 0, "Linux uses the entry");
    let status = peek(context, 32, STATUS)?;
    ensure!(status & SET_INTERRUPT_TABLE != 0, "{status:#x}");
    // To Linux' own CPU and to one of the cell's: the latter is not there for the unit.
    for (destination, is_overruled) in [(0u64, false), (2, true)] {
        let before = overruled(context)?;
        context.poke(&format!("w64 {:x} {OF_IO_APIC:x}", entry + 8))?;
        context.poke(&format!(
            "w64 {entry:x} {:x}",
            destination << 40 | 0x0051_0001
        ))?;
        context.poke(&format!("w64 {INTERRUPT_TABLE:x} {table:x}"))?;
        context.poke(&format!("w32 {COMMAND:x} {status:x}"))?;
        let after = overruled(context)?;
        ensure!(
            (after > before) == is_overruled,
            "{destination}: {before}, {after}"
        );
        ensure!(!aim(context, high, low)?);
    }
    context.poke(&format!("w64 {entry:x} 0"))?;
    context.poke(&format!("w32 {COMMAND:x} {status:x}"))?;
    is_well(context)?;
    end(context)?;
    ensure!(figure(context, "entries")? == 0, "of the cell's line");
    Ok(())
}

/// Linux has one CPU meanwhile, so that its index register is one, too.
fn root(context: &mut Context) -> Result<()> {
    let low = |pin: u32| 0x10 + 2 * pin;
    start(context, "lines")?;
    ensure!(
        read(context, low(LINE))? == MASKED && read(context, low(LINE) + 1)? == 0,
        "the root sees the cell's entry"
    );
    for value in [0x51, 0x1_0051, 0xf3 | 1 << 15] {
        write(context, low(LINE) + 1, 0)?;
        write(context, low(LINE), value)?;
        ensure!(read(context, low(LINE))? == MASKED);
    }
    ensure!(read(context, low(FREE_PIN))? & MASKED != 0);
    for (destination, value, is_refused) in [
        (0, 0x61, false),
        (2, 0x61, true),
        // Logical ids: Linux' own CPU, and one of the cell's.
        (1, 0x861, false),
        (4, 0x861, true),
        // Everyone is who is left.
        (0xff, 0x61, false),
        (0, 0xf5 | 1 << 15, true),
        (0, 0x261, true),
    ] {
        ensure!(
            aim(context, destination << 24, value)? == is_refused,
            "{value:#x} to {destination:#x}: refused is not {is_refused}"
        );
    }
    is_well(context)?;
    end(context)?;
    // Linux has all its CPUs again, each with an index register of its own.
    let entry = format!(
        "taskset 1 sh -c 'for access in \"w32 {IO_APIC:x} {:x}\" \"r32 {:x}\"; \
         do echo $access >/proc/gaol-test/poke; done; cat /proc/gaol-test/poke'",
        low(LINE),
        IO_APIC + 0x10
    );
    let entry = context.machine.check(&entry)?;
    let entry = entry.trim().strip_prefix("ok ").unwrap_or_default();
    ensure!(
        u64::from_str_radix(entry, 16)? & MASKED != 0,
        "the line that was the cell's is not masked: {entry}"
    );
    Ok(())
}

fn in_use(context: &mut Context) -> Result<()> {
    for options in ["", " --unchecked"] {
        let command = format!("gaol cell create in-use.toml{options}");
        let output = context
            .machine
            .run(&format!("cd /root && {command} 2>&1"))?;
        ensure!(
            output.status == 1 && output.stdout.contains("Linux uses interrupt line 4"),
            "`{command}`: {} {}",
            output.status,
            output.stdout
        );
    }
    context.machine.linux_is_well(CPUS)
}

fn startup(context: &mut Context) -> Result<()> {
    let said = start(context, "startup rounds=20")?;
    expect(
        &said,
        &[
            "CPUs started up: 2 of 2",
            "CPUs started again: 2 of 2",
            "physical: 20 of 20",
            "itself: 20 of 20",
            "all: 20 of 20",
            "all others: 20 of 20",
            "broadcast: 20 of 20",
            "logical broadcast: 20 of 20",
            "a set: 20 of 20",
            "a set with CPU 0: 20 of 20",
            "one of a set: 20 of 20",
            "lowest priority: 20 of 20",
            "another cluster: 1 of 1",
            "CPU 0: 1 of 1",
            "lowest priority of CPU 0: 1 of 1",
            "INIT de-assert: 1 of 1",
            "all to all with lowest priority: 1 of 1",
            "startup without INIT: 0 of 1",
            "behind that: 20 of 20",
        ],
    )?;
    if context.platform != Platform::Qemu {
        expect(&said, &["an illegal vector: 1 of 1"])?;
    }
    end(context)
}
