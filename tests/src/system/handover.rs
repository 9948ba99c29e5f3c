//! What changes hands is cleared: no owner of a CPU or of memory finds what the one before has left.

use anyhow::{Context as _, Result, bail, ensure};

use super::{CPUS, Context, load_modules};
use crate::gaol::Gaol;
use crate::machine::Spec;
use crate::runner::{Check, Group};

/// What is left behind. Any register takes it as an address, and nothing else has it.
const PATTERN: u64 = 0x0000_5ec7_e75e_c7e7;
/// The CPU that changes hands.
const CPU: u32 = 2;
/// The cell's memory, besides the RAM that it runs in.
const MUCH: u64 = 0x40_0000;
const MUCH_BYTES: u64 = 4 << 20;
/// Registers that the cell looks at: 16 of 4 words, DR0 to DR3, 9 MSRs, CR2.
const REGISTERS: u32 = 64 + 4 + 9 + 1;

pub(super) const GROUP: Group = Group {
    name: "handover",
    machine: |spec| {
        // Linux would clear memory before it gives it away.
        let spec = Spec {
            command_line: format!("{} init_on_alloc=0 init_on_free=0", spec.command_line),
            ..spec
        };
        Ok(spec.content(
            "root/inspector.toml",
            format!(
                "name = \"inspector\"\ncpus = [{CPU}]\nconsole = true\n\n\
                 [[memory]]\nname = \"ram\"\nat = 0x0\nsize = \"1 MiB\"\naccess = \"rwx\"\nloadable = true\n\n\
                 [[memory]]\nname = \"communication\"\nkind = \"communication\"\nat = 0x100000\n\n\
                 [[memory]]\nname = \"much\"\nat = {MUCH:#x}\nsize = \"4 MiB\"\naccess = \"rw\"\n"
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
            name: "a-cell-finds-nothing-of-linux",
            run: from_linux,
        },
        Check {
            name: "nobody-finds-anything-of-a-cell",
            run: from_a_cell,
        },
        Check {
            name: "a-cell-that-is-started-again-finds-registers-clear",
            run: from_itself,
        },
    ],
};

/// What the cell is told to do.
fn action(name: &str) -> String {
    format!(
        "do={name} inverted={:#x} from={MUCH:#x} to={:#x}",
        !PATTERN,
        MUCH + MUCH_BYTES
    )
}

/// Where the larger region of the cell is.
fn physical(context: &mut Context) -> Result<u64> {
    let line = context.machine.check(
        "for cell in /sys/devices/gaol/cells/*; do [ \"$(cat $cell/name)\" = inspector ] && grep '^much ' $cell/memory; done; :",
    )?;
    let number = line
        .split_whitespace()
        .nth(1)
        .with_context(|| format!("sysfs does not tell where the memory is: {line:?}"))?;
    Ok(u64::from_str_radix(number.trim_start_matches("0x"), 16)?)
}

/// Lets the cell do this once more; returns the lines that it prints.
fn load_and_start(context: &mut Context, name: &str) -> Result<String> {
    let said = "violator: survived";
    let before = context.machine.check("gaol console")?.matches(said).count();
    let command_line = action(name);
    context.machine.gaol(&format!(
        "cell load inspector violator.bin -s \"{command_line}\""
    ))?;
    context.machine.gaol("cell start inspector")?;
    context.wait_console_count(said, before + 1)?;
    let console = context.machine.check("gaol console")?;
    Ok(console
        .rsplit_once(&format!("violator: do {name}"))
        .map_or(String::new(), |(_, said)| said.to_owned()))
}

fn destroy(context: &mut Context) -> Result<()> {
    context.machine.gaol("cell destroy inspector --force")?;
    context.machine.linux_is_well(CPUS)
}

/// The cell has looked at all and found nothing.
fn assert_clear(said: &str) -> Result<()> {
    let words = MUCH_BYTES / 8;
    for line in [
        format!("{REGISTERS} registers, 0 not clear, 0 of another, XCR0 reset: true"),
        format!("{words} words, 0 not clear, 0 of another"),
    ] {
        ensure!(said.contains(&line), "not `{line}`, but: {said}");
    }
    Ok(())
}

/// How often the cell may get other memory than before, which Linux chooses.
const MOVES: usize = 10;

fn from_linux(context: &mut Context) -> Result<()> {
    for _ in 0..MOVES {
        let is_there = create_where_linux_was(context)?;
        let said = match is_there {
            true => load_and_start(context, "inspect")?,
            false => String::new(),
        };
        destroy(context)?;
        if is_there {
            return assert_clear(&said);
        }
    }
    bail!("the cell has had other memory {MOVES} times")
}

/// Has Linux fill the memory that the cell has had last, and the registers of its CPU, and creates it again. Whether it has
/// the same memory.
fn create_where_linux_was(context: &mut Context) -> Result<bool> {
    context.machine.gaol("cell create inspector.toml")?;
    let at = physical(context)?;
    destroy(context)?;
    let painted = context.machine.check(&format!(
        "echo fill {at:x} {:x} {PATTERN:x} >/proc/gaol-test/paint && cat /proc/gaol-test/paint",
        at + MUCH_BYTES
    ))?;
    let painted: u64 = painted.trim().parse()?;
    ensure!(
        painted > MUCH_BYTES / 8 / 2,
        "only {painted} words could be painted"
    );
    context.machine.check(&format!(
        "echo fill {CPU} {PATTERN:x} >/proc/gaol-test/remains"
    ))?;
    context.machine.gaol("cell create inspector.toml")?;
    let filled = context.machine.check("cat /proc/gaol-test/remains")?;
    ensure!(!filled.contains("to be filled"), "no register was filled");
    Ok(physical(context)? == at)
}

fn from_a_cell(context: &mut Context) -> Result<()> {
    context.machine.gaol("cell create inspector.toml")?;
    let at = physical(context)?;
    let words = MUCH_BYTES / 8;
    let said = load_and_start(context, "leave")?;
    ensure!(
        said.contains(&format!("{words} of {words} words are left behind"))
            && !said.contains("does not take"),
        "the cell did not leave all: {said}"
    );
    // Linux first: its memory, and the vector registers of the CPU that comes back.
    context.machine.check(&format!(
        "echo look {CPU} {PATTERN:x} >/proc/gaol-test/remains"
    ))?;
    destroy(context)?;
    let found = context.machine.check(&format!(
        "echo look {at:x} {:x} {PATTERN:x} >/proc/gaol-test/paint && cat /proc/gaol-test/paint",
        at + MUCH_BYTES
    ))?;
    ensure!(
        found.trim() == "0",
        "Linux finds {} words of the cell's",
        found.trim()
    );
    let found = context.machine.check("cat /proc/gaol-test/remains")?;
    ensure!(
        found.trim() == "0 of 16",
        "of the vector registers {} have the cell's values",
        found.trim()
    );
    // Then another cell.
    context.machine.gaol("cell create inspector.toml")?;
    let said = load_and_start(context, "inspect")?;
    assert_clear(&said)?;
    destroy(context)
}

fn from_itself(context: &mut Context) -> Result<()> {
    context.machine.gaol("cell create inspector.toml")?;
    load_and_start(context, "leave")?;
    context.machine.gaol("cell shutdown inspector")?;
    let said = load_and_start(context, "inspect")?;
    let line = format!("{REGISTERS} registers, 0 not clear, 0 of another, XCR0 reset: true");
    ensure!(said.contains(&line), "not `{line}`, but: {said}");
    // Its memory is its own.
    let words = MUCH_BYTES / 8;
    ensure!(
        said.contains(&format!("{words} words, {words} not clear")),
        "the cell has lost its memory: {said}"
    );
    destroy(context)
}
