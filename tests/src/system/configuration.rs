//! The configuration that Gaol makes of the machine itself: as a file, without any file, and with a strict root cell.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{CPUS, Context, load_modules, usual};
use crate::gaol::Gaol;
use crate::latency;
use crate::machine::Platform;
use crate::runner::{Check, Group};

/// Ticks that the latency cell measures, and how long that may take.
const TICKS: u64 = 500;
const TIMEOUT: Duration = Duration::from_secs(300);
/// Where the display's BIOS is; every one begins with this signature (PCI Firmware specification, "Expansion ROM Header").
const DISPLAY_ROM: u64 = 0xc_0000;
const ROM_SIGNATURE: u64 = 0xaa55;
/// A register of a device that nothing in Linux uses: its port, where the file lists it, and what changes of it.
///
/// The first disk's status (ATA specification, "Status register"), but for the bit that tells of the disk's turns; where
/// there is none, the display's miscellaneous output register.
const fn unused_register(platform: Platform) -> (u16, u16, u64) {
    match platform {
        Platform::Bochs | Platform::Kvm => (0x1f7, 0x1f0, 2),
        Platform::Qemu => (0x3cc, 0x3c0, 0),
    }
}

/// A register that a strict root cell may write where it is listed, and a value that changes nothing that matters:
/// IA32_ENERGY_PERF_BIAS, or MCG_STATUS on AMD's.
const fn listed_register(platform: Platform) -> (u32, u64) {
    match platform {
        Platform::Bochs | Platform::Kvm => (0x1b0, 6),
        Platform::Qemu => (0x17a, 0),
    }
}

pub(super) const GROUP: Group = Group {
    name: "configuration",
    machine: usual,
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "a-file-is-made-of-the-machine",
            run: created,
        },
        Check {
            name: "enable-needs-no-file",
            run: without_a_file,
        },
        Check {
            name: "the-file-of-another-machine-is-refused",
            run: another_machine,
        },
        Check {
            name: "a-strict-root-has-what-is-listed",
            run: strict,
        },
        Check {
            name: "a-plan-becomes-a-cell",
            run: planned,
        },
    ],
};

/// Lets Gaol describe the machine; what people should know besides is of no interest here.
fn create(context: &mut Context, file: &str, options: &str) -> Result<Value> {
    context.machine.gaol(&format!(
        "config create -o {file} --force {options} 2>/dev/null"
    ))
}

fn created(context: &mut Context) -> Result<()> {
    let said = create(context, "/tmp/own.toml", "")?;
    ensure!(said["cpus"] == CPUS, "it found {} CPUs", said["cpus"]);
    ensure!(
        said["devices"].as_u64().is_some_and(|count| count > 2),
        "it found {} PCI functions",
        said["devices"]
    );
    let again = create(context, "/tmp/again.toml", "")?;
    ensure!(
        said["toml"] == again["toml"],
        "the same machine gave two files"
    );
    let file = context
        .machine
        .check("cmp /tmp/own.toml /tmp/again.toml && cat /tmp/own.toml")?;
    ensure!(
        file.contains("port = 0x2f8"),
        "the second serial port is not the hypervisor's console: {file}"
    );
    context
        .machine
        .gaol("config check /tmp/own.toml latency.toml hello.toml")?;
    context.machine.gaol("enable /tmp/own.toml")?;
    context.start_cell("latency", &format!("period=100us ticks={TICKS}"))?;
    let run = latency::wait(&mut context.machine, "latency", TIMEOUT, &|_| {})?;
    latency::is_as_promised(context.platform, &run, TICKS)?;
    context.machine.gaol("cell destroy latency")?;
    context.disable()
}

fn without_a_file(context: &mut Context) -> Result<()> {
    let said = context.machine.gaol("enable")?;
    ensure!(
        said["configuration"] == "machine" && said["saved"].is_string(),
        "it was enabled with {said}"
    );
    context.machine.check(
        "printf 'name = \"far\"\\ncpus = [2]\\n[[memory]]\\nname = \"ram\"\\nat = 0x0\\nsize = \"1 MiB\"\\naccess = \"rwx\"\\n[[devices]]\\nid = \"ffff:0001\"\\n' >/tmp/far.toml",
    )?;
    context
        .machine
        .refused("cell create /tmp/far.toml", "has no PCI function ffff:0001")?;
    context.start_cell("hello", "every=100ms")?;
    context.wait_console("hello: ")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()?;
    context.machine.check("! test -e /run/gaol/system.toml")?;
    Ok(())
}

fn another_machine(context: &mut Context) -> Result<()> {
    create(context, "/tmp/own.toml", "")?;
    context
        .machine
        .check("sed 's/apic-id = 2,/apic-id = 77,/' /tmp/own.toml >/tmp/other.toml")?;
    context.machine.refused(
        "enable /tmp/other.toml",
        "CPU 2 has APIC id 77 in the file, and 2 in this machine",
    )?;
    context.machine.linux_is_well(CPUS)
}

/// What the device's register reads.
fn device(context: &mut Context) -> Result<u64> {
    let (port, _, changing) = unused_register(context.platform);
    let status = context.poke(&format!("inb {port:x}"))?;
    Ok(status.unwrap_or(0) | changing)
}

fn strict(context: &mut Context) -> Result<()> {
    create(context, "/tmp/strict.toml", "--policy strict")?;
    let (_, ports, _) = unused_register(context.platform);
    let (register, value) = listed_register(context.platform);
    // The same without a ROM, a device's ports and a register, all of which Linux can do without.
    context.machine.check(&format!(
        "awk 'BEGIN{{RS=\"\";ORS=\"\\n\\n\"}} !/at = {DISPLAY_ROM:#x}\\n/' /tmp/strict.toml | \
         sed '/first = {ports:#x},/d; /index = {register:#x},/d' >/tmp/less.toml; \
         test $(wc -l </tmp/less.toml) -lt $(wc -l </tmp/strict.toml)"
    ))?;
    let rom = format!("r16 {DISPLAY_ROM:x}");
    let write = format!("wrmsr {register:x} {value:x}");
    let before = device(context)?;
    ensure!(before != 0xff, "the machine has no device to be seen");
    for (file, has_all) in [("/tmp/strict.toml", true), ("/tmp/less.toml", false)] {
        context.machine.gaol(&format!("enable {file}"))?;
        let seen = (context.poke(&rom)?, device(context)?);
        let expected = match has_all {
            true => (Some(ROM_SIGNATURE), before),
            false => (Some(0xffff), 0xff),
        };
        ensure!(
            seen == expected,
            "with {file} the root reads {seen:x?}, not {expected:x?}"
        );
        ensure!(
            context.poke(&write)?.is_some() == has_all,
            "with {file} a write to register {register:#x} is otherwise"
        );
        context.machine.linux_is_well(CPUS)?;
        context.start_cell("hello", "every=100ms")?;
        context.wait_console("hello: ")?;
        context.machine.gaol("cell destroy hello")?;
        context.disable()?;
    }
    ensure!(
        (context.poke(&rom)?, device(context)?) == (Some(ROM_SIGNATURE), before),
        "the machine is not as it was"
    );
    Ok(())
}

fn planned(context: &mut Context) -> Result<()> {
    let said = context.machine.gaol(
        "plan --name hello --cpus 1 --memory '3 MiB' --image hello.bin -o /tmp/plan --force 2>/dev/null",
    )?;
    let cpu = said["cpus"][0].as_u64();
    ensure!(cpu.is_some_and(|cpu| cpu != 0), "it chose {}", said["cpus"]);
    // What comes next, as it is printed.
    let commands = said["commands"].as_array().cloned().unwrap_or_default();
    ensure!(commands.len() == 4, "it says {commands:?}");
    for command in commands.iter().filter_map(Value::as_str) {
        context.machine.check(command)?;
    }
    context.wait_console("hello: ")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}
