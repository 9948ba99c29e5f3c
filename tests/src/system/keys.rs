//! What a cell's configuration says besides CPUs and plain memory, and what the hypervisor makes of it: memory that
//! cells share by name, registers that a cell gets, and which CPUs a violation stops.

use anyhow::{Context as _, Result, ensure};

use super::{CPUS, Context, load_modules};
use crate::gaol::Gaol;
use crate::runner::{Check, Group};

/// Where the cells have their shared memory, and how much.
const MAILBOX: u64 = 0x20_0000;
/// A register that no cell has unless it is told so, and that every machine here lets software write to
/// (IA32_ENERGY_PERF_BIAS).
const REGISTER: u32 = 0x1b0;

pub(super) const GROUP: Group = Group {
    name: "keys",
    machine: |spec| {
        let shared = format!(
            "[[memory]]\nname = \"mailbox\"\nat = {MAILBOX:#x}\nsize = \"64 KiB\"\nshared = true\n"
        );
        let register =
            |more: &str| format!("[[msrs]]\nindex = {REGISTER:#x}\naccess = \"rw\"\n{more}");
        Ok(spec
            .content("root/writer.toml", cell("writer", "[2]", "", &shared))
            .content("root/reader.toml", cell("reader", "[3]", "", &shared))
            .content("root/granted.toml", cell("granted", "[2]", "", &register("")))
            .content(
                "root/masked.toml",
                cell("masked", "[2]", "", &register("write-mask = 0xf\n")),
            )
            .content("root/pair.toml", cell("pair", "[2, 3]", "", ""))
            .content(
                "root/strict.toml",
                cell("strict", "[2, 3]", "on-violation = \"park-cell\"\n", ""),
            )
            .content(
                "root/combining.toml",
                cell(
                    "combining",
                    "[2]",
                    "",
                    "[[memory]]\nname = \"frame\"\nat = 0x400000\nsize = \"64 KiB\"\ncache = \"write-combining\"\n",
                ),
            ))
    },
    prepare: |context| {
        load_modules(context)?;
        context.enable()
    },
    except: &[],
    checks: &[
        Check {
            name: "cells-share-memory-by-name",
            run: shared_memory,
        },
        Check {
            name: "a-cell-gets-registers-that-it-names",
            run: registers,
        },
        Check {
            name: "a-violation-parks-the-cpu-or-the-cell",
            run: violation_policy,
        },
        Check {
            name: "memory-of-another-type-is-memory",
            run: |context| {
                run(context, "combining", "memory-write address=0x400000")?;
                end(context, &["combining"])
            },
        },
    ],
};

/// The file of a cell that runs the violator.
fn cell(name: &str, cpus: &str, keys: &str, tables: &str) -> String {
    format!(
        "name = \"{name}\"\ncpus = {cpus}\nconsole = true\n{keys}\n\
         [[memory]]\nname = \"ram\"\nat = 0x0\nsize = \"1 MiB\"\naccess = \"rwx\"\nloadable = true\n\n\
         [[memory]]\nname = \"communication\"\nkind = \"communication\"\nat = 0x100000\n\n{tables}"
    )
}

/// Lets a cell do this to its end; returns what it has printed.
fn run(context: &mut Context, name: &str, what: &str) -> Result<String> {
    context.start_cell_with(name, "violator", &format!("do={what}"))?;
    let verb = what.split_whitespace().next().unwrap_or(what);
    for _ in 0..60 {
        let console = context.machine.check("gaol console")?;
        let said = console
            .rsplit_once(&format!("violator: do {verb}"))
            .map_or("", |(_, said)| said);
        if said.contains("violator: survived") {
            return Ok(said.to_owned());
        }
        context.machine.check("sleep 0.3")?;
    }
    anyhow::bail!("the cell `{name}` did not survive `{what}`")
}

fn end(context: &mut Context, names: &[&str]) -> Result<()> {
    for name in names {
        context
            .machine
            .gaol(&format!("cell destroy {name} --force"))?;
    }
    context.machine.linux_is_well(CPUS)
}

/// Physical address of a cell's region.
fn physical(context: &mut Context, cell: &str, region: &str) -> Result<u64> {
    let line = context.machine.check(&format!(
        "for cell in /sys/devices/gaol/cells/*; do [ \"$(cat $cell/name)\" = {cell} ] && grep '^{region} ' $cell/memory; done; :"
    ))?;
    let number = line.split_whitespace().nth(1).with_context(|| {
        format!("sysfs does not tell where `{region}` of `{cell}` is: {line:?}")
    })?;
    Ok(u64::from_str_radix(number.trim_start_matches("0x"), 16)?)
}

fn shared_memory(context: &mut Context) -> Result<()> {
    let value = 0x5ec2_e701u64;
    run(
        context,
        "writer",
        &format!("memory-write address={MAILBOX:#x} value={value:#x}"),
    )?;
    let said = run(
        context,
        "reader",
        &format!("memory-read address={MAILBOX:#x}"),
    )?;
    ensure!(
        said.contains(&format!("read {value:#x}")),
        "the cells do not have the same memory: {said}"
    );
    let at = physical(context, "writer", "mailbox")?;
    ensure!(
        at == physical(context, "reader", "mailbox")?,
        "the module tells of two places"
    );
    let ones = Some(0xffff_ffff);
    let read = format!("r32 {at:#x}");
    ensure!(context.poke(&read)? == ones, "the root sees it");
    // It stays with the cell that is left, with what is in it.
    context.machine.gaol("cell destroy writer --force")?;
    ensure!(
        context.poke(&read)? == ones,
        "the root got memory that a cell still has"
    );
    context.machine.gaol("cell shutdown reader --force")?;
    context.machine.gaol(&format!(
        "cell load reader violator.bin -s \"do=memory-read address={MAILBOX:#x}\""
    ))?;
    context.machine.gaol("cell start reader")?;
    let again = format!("read {value:#x}");
    context.wait_console_count(&again, 2)?;
    // The next one that comes shares it again; the last one takes its content along.
    run(
        context,
        "writer",
        &format!("memory-read address={MAILBOX:#x}"),
    )?;
    context.wait_console_count(&again, 3)?;
    end(context, &["reader", "writer"])?;
    ensure!(
        context.poke(&read)?.is_some_and(|seen| seen != value),
        "what the cells shared was not cleared"
    );
    Ok(())
}

fn registers(context: &mut Context) -> Result<()> {
    let read = format!("msr-read msr={REGISTER:#x}");
    let write = format!("msr-write msr={REGISTER:#x} value=6");
    for (name, what) in [
        ("granted", &read),
        ("granted", &write),
        ("masked", &read),
        ("masked", &write),
    ] {
        let said = run(context, name, what)?;
        ensure!(
            !said.contains("general protection"),
            "`{name}` may not `{what}`: {said}"
        );
        end(context, &[name])?;
    }
    for what in [&read, &write] {
        let said = run(context, "pair", what)?;
        ensure!(
            said.contains("general protection"),
            "a cell that does not name the register may `{what}`: {said}"
        );
        end(context, &["pair"])?;
    }
    Ok(())
}

fn violation_policy(context: &mut Context) -> Result<()> {
    let what = "do=memory-read address=0x40000000";
    // Whichever CPU comes first does what the cell is told, and the other waits.
    let one: &[&str] = &["2", "3"];
    for (name, state, failed) in [("pair", "running", one), ("strict", "failed", &["2-3"])] {
        context.start_cell_with(name, "violator", what)?;
        context.wait_console("violator: do memory-read")?;
        let file = format!(
            "for cell in /sys/devices/gaol/cells/*; do [ \"$(cat $cell/name)\" = {name} ] && cat $cell/cpus_failed_list; done; :"
        );
        let mut list = String::new();
        for _ in 0..60 {
            list = context.machine.check(&file)?.trim().to_owned();
            if failed.contains(&&*list) {
                break;
            }
            context.machine.check("sleep 0.3")?;
        }
        ensure!(
            failed.contains(&&*list),
            "CPUs {list:?} of `{name}` were parked, not {failed:?}"
        );
        context.wait_state(name, state)?;
        context.machine.linux_is_well(CPUS - 2)?;
        end(context, &[name])?;
    }
    Ok(())
}
