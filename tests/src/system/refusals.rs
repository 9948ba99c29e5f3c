//! Bad input and bad moments: a clear error each, nothing changed, nothing lost.

use anyhow::{Context as _, Result, ensure};
use gaol_abi::config::{
    MEMORY_COMMUNICATION, MEMORY_EXECUTE, MEMORY_LOADABLE, MEMORY_READ, MEMORY_WRITE, MemoryRegion,
};
use gaol_config::{CpuSet, encode};

use super::{CPUS, Context, SYSTEM, load_modules};
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

pub(super) const GROUP: Group = Group {
    name: "refusals",
    machine: |spec| {
        let mut spec = spec;
        for (name, cpu, size) in CELLS {
            // The same as text for the command, and as the module gets it from somebody who checks nothing.
            spec = spec
                .content(&format!("root/{name}.toml"), text(name, *cpu, *size))
                .content(&format!("root/{name}.cell"), binary(name, *cpu, *size, 0)?);
        }
        Ok(spec)
    },
    prepare: load_modules,
    except: &[],
    checks: &[
        Check {
            name: "system-configuration-truncated",
            run: |context| damaged_system(context, "head -c 40", "truncated"),
        },
        Check {
            name: "system-configuration-of-another-revision",
            run: |context| damaged_system(context, "patch 8 4711", "revision"),
        },
        Check {
            name: "system-configuration-with-a-wrong-checksum",
            run: |context| damaged_system(context, "patch 40 1", "checksum"),
        },
        Check {
            name: "a-cell-written-by-hand-works-when-it-is-right",
            run: right,
        },
        Check {
            name: "cell-configuration-damaged",
            run: damaged_cell,
        },
        Check {
            name: "cell-over-the-hypervisor",
            run: cell_over_hypervisor,
        },
        Check {
            name: "cell-with-cpus-that-do-not-exist",
            run: |context| refused_cell(context, "many", "no CPU 9"),
        },
        Check {
            name: "cell-with-cpu-0",
            run: |context| refused_cell(context, "zero", "CPU 0"),
        },
        Check {
            name: "cell-with-more-memory-than-there-is",
            run: |context| refused_cell(context, "huge", "memory"),
        },
        Check {
            name: "cell-with-a-cpu-of-another",
            run: cpu_of_another,
        },
        Check {
            name: "enable-twice",
            run: enable_twice,
        },
        Check {
            name: "everything-before-enable",
            run: before_enable,
        },
        Check {
            name: "disable-with-cells-alive",
            run: disable_with_cells,
        },
        Check {
            name: "cell-names-that-exist-or-do-not",
            run: cell_names,
        },
        Check {
            name: "load-beyond-the-cells-memory",
            run: load_beyond,
        },
        Check {
            name: "start-without-load",
            run: start_without_load,
        },
        Check {
            name: "killed-in-the-middle",
            run: killed,
        },
        Check {
            name: "two-at-once",
            run: two_at_once,
        },
        Check {
            name: "wrong-usage-is-status-2",
            run: wrong_usage,
        },
        Check {
            name: "module-stays-while-enabled",
            run: module_stays,
        },
    ],
};

/// Cells that are wrong, but for the first: name, CPU, bytes of memory.
const CELLS: &[(&str, u32, u64)] = &[
    ("right", 1, 0x10_0000),
    ("zero", 0, 0x10_0000),
    ("many", 9, 0x10_0000),
    ("huge", 2, 0x4000_0000),
    ("same-cpu", 2, 0x10_0000),
];
/// Where these cells have their communication region.
const COMMUNICATION: u64 = 0x8000_0000;

/// A cell as people write it.
fn text(name: &str, cpu: u32, size: u64) -> String {
    format!(
        "name = \"{name}\"\ncpus = [{cpu}]\n[[memory]]\nname = \"ram\"\nat = 0x0\nsize = \"{} KiB\"\n\
         access = \"rwx\"\nloadable = true\n[[memory]]\nname = \"communication\"\nkind = \"communication\"\n\
         at = {COMMUNICATION:#x}\n",
        size >> 10
    )
}

/// A cell as the module takes it; `physical` 0 lets Linux give the memory.
fn binary(name: &str, cpu: u32, size: u64, physical: u64) -> Result<Vec<u8>> {
    let name_of = |text: &str| encode::name(text).context("a name that is too long");
    let region = |name: &str, physical, guest, size, flags| -> Result<MemoryRegion> {
        Ok(MemoryRegion {
            name: name_of(name)?,
            physical,
            guest,
            size,
            flags,
        })
    };
    let mut cpus = CpuSet::EMPTY;
    cpus.insert(cpu);
    let ram = MEMORY_READ | MEMORY_WRITE | MEMORY_EXECUTE | MEMORY_LOADABLE;
    let communication = MEMORY_READ | MEMORY_WRITE | MEMORY_COMMUNICATION;
    let cell = encode::Cell {
        flags: 0,
        name: name_of(name)?,
        cpus,
        reset_address: 0,
        shutdown_milliseconds: 0,
        memory: vec![
            region("ram", physical, 0, size, ram)?,
            region("communication", 0, COMMUNICATION, 4096, communication)?,
        ],
        ports: vec![],
        ..encode::Cell::default()
    };
    Ok(cell.encode().bytes().to_vec())
}

/// Applies `head -c N` or `patch OFFSET VALUE` (32 bits) to a file.
fn damage(context: &mut Context, how: &str, from: &str, to: &str) -> Result<()> {
    let words: Vec<&str> = how.split(' ').collect();
    let command = match words[..] {
        ["patch", offset, value] => {
            let bytes: String = value
                .parse::<u32>()?
                .to_le_bytes()
                .iter()
                .map(|byte| format!("\\{byte:03o}"))
                .collect();
            format!(
                "cp {from} {to} && printf '{bytes}' | dd of={to} bs=1 seek={offset} conv=notrunc 2>/dev/null"
            )
        }
        _ => format!("{how} {from} >{to}"),
    };
    context.machine.check(&command)?;
    Ok(())
}

/// Asserts that Gaol can still be enabled and disabled.
fn still_works(context: &mut Context) -> Result<()> {
    context.machine.linux_is_well(CPUS)?;
    context.enable()?;
    context.disable()
}

fn damaged_system(context: &mut Context, how: &str, reason: &str) -> Result<()> {
    context
        .machine
        .check(&format!("gaol config build {SYSTEM} -o /tmp/system.bin"))?;
    damage(context, how, "/tmp/system.bin", "/tmp/damaged.bin")?;
    // The command refuses it itself; without its checks the module does.
    for options in ["", " --unchecked"] {
        context
            .machine
            .refused(&format!("enable /tmp/damaged.bin{options}"), reason)?;
    }
    ensure!(context.sysfs_number("enabled")? == 0, "it was enabled");
    // The same file undamaged does.
    context.machine.gaol("enable /tmp/system.bin")?;
    context.disable()
}

/// Without this, the refusals below might have another cause.
fn right(context: &mut Context) -> Result<()> {
    context.enable()?;
    for file in ["right.toml", "right.cell --unchecked"] {
        context.machine.gaol(&format!("cell create {file}"))?;
        context.machine.gaol("cell destroy right")?;
    }
    context.disable()
}

fn damaged_cell(context: &mut Context) -> Result<()> {
    context.enable()?;
    context
        .machine
        .check("gaol config build hello.toml -o /tmp/hello.bin")?;
    let used = context.sysfs_number("mem_pool_used")?;
    for (how, reason) in [
        ("head -c 30", "truncated"),
        ("head -c 100", "truncated"),
        ("patch 8 4711", "revision"),
        ("patch 40 1", "checksum"),
    ] {
        damage(context, how, "/tmp/hello.bin", "/tmp/damaged.bin")?;
        for options in ["", " --unchecked"] {
            context
                .machine
                .refused(&format!("cell create /tmp/damaged.bin{options}"), reason)?;
        }
    }
    ensure!(
        context.sysfs_number("mem_pool_used")? == used,
        "frames were lost"
    );
    context.machine.gaol("cell create /tmp/hello.bin")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}

fn cell_over_hypervisor(context: &mut Context) -> Result<()> {
    context.enable()?;
    let (physical, _) = context.region()?;
    context.machine.check(&format!(
        "sed 's/^at = 0x0$/at = 0x0\\nphysical = {physical:#x}/' hello.toml >/tmp/over.toml && grep -q physical /tmp/over.toml"
    ))?;
    context
        .machine
        .refused("cell create /tmp/over.toml", "hypervisor")?;
    let bytes = binary("over", 2, 0x10_0000, physical)?;
    context.machine.write_file("/tmp/over.cell", &bytes)?;
    // The module knows only that it is not memory that may be given away.
    context.machine.refused(
        "cell create /tmp/over.cell --unchecked",
        "used by something else",
    )?;
    context.machine.linux_is_well(CPUS)?;
    context.disable()
}

fn refused_cell(context: &mut Context, name: &str, reason: &str) -> Result<()> {
    context.enable()?;
    let used = context.sysfs_number("mem_pool_used")?;
    for file in [format!("{name}.toml"), format!("{name}.cell --unchecked")] {
        context
            .machine
            .refused(&format!("cell create {file}"), reason)?;
    }
    ensure!(
        context.sysfs_number("mem_pool_used")? == used,
        "frames were lost"
    );
    context.machine.linux_is_well(CPUS)?;
    context.disable()
}

fn cpu_of_another(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.machine.gaol("cell create hello.toml")?;
    for file in ["same-cpu.toml", "same-cpu.cell --unchecked"] {
        context
            .machine
            .refused(&format!("cell create {file}"), "CPU 2")?;
    }
    context.machine.linux_is_well(CPUS - 1)?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}

fn enable_twice(context: &mut Context) -> Result<()> {
    context.enable()?;
    context
        .machine
        .refused(&format!("enable {SYSTEM}"), "enabled already")?;
    ensure!(context.sysfs_number("enabled")? == 1, "it was disabled");
    context.disable()
}

fn before_enable(context: &mut Context) -> Result<()> {
    for command in [
        "disable",
        "cell create hello.toml",
        "cell load hello hello.bin",
        "cell start hello",
        "cell shutdown hello",
        "cell destroy hello",
        "cell stats hello",
    ] {
        context.machine.refused(command, "not enabled")?;
    }
    still_works(context)
}

fn disable_with_cells(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.start_cell("hello", "every=200ms")?;
    context.machine.refused("disable", "cell")?;
    context.wait_state("hello", "running")?;
    context.machine.gaol("disable --force")?;
    still_works(context)
}

fn cell_names(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.machine.gaol("cell create hello.toml")?;
    context
        .machine
        .refused("cell create hello.toml", "exists")?;
    for command in [
        "cell load nobody hello.bin",
        "cell start nobody",
        "cell shutdown nobody",
        "cell destroy nobody",
        "cell destroy 14",
        "cell stats nobody",
    ] {
        context.machine.refused(command, "no cell")?;
    }
    for command in ["cell start 0", "cell destroy 0", "cell load 0 hello.bin"] {
        context.machine.refused(command, "root")?;
    }
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}

fn load_beyond(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.machine.gaol("cell create hello.toml")?;
    for address in ["0xff000", "0x100000", "0x40000000", "0xfffffffffffff000"] {
        context
            .machine
            .refused(&format!("cell load hello hello.bin -a {address}"), "memory")?;
    }
    context.machine.gaol("cell load hello hello.bin")?;
    context.machine.gaol("cell start hello")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}

fn start_without_load(context: &mut Context) -> Result<()> {
    context.enable()?;
    context.machine.gaol("cell create hello.toml")?;
    context.machine.refused("cell start hello", "load")?;
    context.machine.gaol("cell destroy hello")?;
    context.disable()
}

fn killed(context: &mut Context) -> Result<()> {
    // Delays from the start of the command to well behind the ioctl.
    for delay in ["0.01", "0.02", "0.03", "0.05", "0.08", "0.12", "0.2"] {
        context.machine.run(&format!(
            "gaol enable {SYSTEM} >/dev/null 2>&1 & sleep {delay}; kill -9 $!; wait $! 2>/dev/null"
        ))?;
        context.machine.linux_is_well(CPUS)?;
        // Whichever way it went, it went it to the end.
        if context.sysfs_number("enabled")? == 0 {
            context.enable()?;
        }
        context.machine.run(&format!(
            "gaol cell create hello.toml >/dev/null 2>&1 & sleep {delay}; kill -9 $!; wait $! 2>/dev/null"
        ))?;
        let cells = context.machine.check("ls /sys/devices/gaol/cells")?;
        match cells.split_whitespace().count() {
            1 => context.machine.linux_is_well(CPUS)?,
            2 => {
                context.machine.linux_is_well(CPUS - 1)?;
                context.machine.gaol("cell destroy hello")?;
            }
            number => anyhow::bail!("{number} cells exist"),
        }
        context.machine.run(&format!(
            "gaol disable >/dev/null 2>&1 & sleep {delay}; kill -9 $!; wait $! 2>/dev/null"
        ))?;
        if context.sysfs_number("enabled")? == 1 {
            context.machine.gaol("disable")?;
        }
        context.machine.linux_is_well(CPUS)?;
    }
    still_works(context)
}

/// Runs a command twice at the same time; returns how many succeeded.
fn twice(context: &mut Context, command: &str) -> Result<usize> {
    let text = context.machine.check(&format!(
        "(gaol {command} >/tmp/one 2>&1; echo $? >/tmp/status-one) & gaol {command} >/tmp/two 2>&1; echo $? >/tmp/status-two; wait; cat /tmp/status-one /tmp/status-two"
    ))?;
    let statuses: Vec<&str> = text.split_whitespace().collect();
    ensure!(
        statuses.iter().all(|status| matches!(*status, "0" | "1")),
        "the statuses are {statuses:?}"
    );
    Ok(statuses.iter().filter(|status| **status == "0").count())
}

fn two_at_once(context: &mut Context) -> Result<()> {
    for _ in 0..3 {
        for command in [
            format!("enable {SYSTEM}"),
            "cell create hello.toml".to_owned(),
            "cell destroy hello".to_owned(),
            "disable".to_owned(),
        ] {
            let succeeded = twice(context, &command)?;
            ensure!(
                succeeded == 1,
                "of two `gaol {command}` at once {succeeded} succeeded"
            );
        }
        context.machine.linux_is_well(CPUS)?;
    }
    still_works(context)
}

fn wrong_usage(context: &mut Context) -> Result<()> {
    for command in ["", "fly", "cell", "cell start", "enable --no-such-option"] {
        let output = context.machine.run(&format!("gaol {command}"))?;
        ensure!(
            output.status == 2,
            "`gaol {command}` ended with status {}",
            output.status
        );
    }
    Ok(())
}

fn module_stays(context: &mut Context) -> Result<()> {
    context.enable()?;
    let output = context.machine.run("rmmod gaol")?;
    ensure!(output.status != 0, "the module was unloaded while enabled");
    context.disable()
}
