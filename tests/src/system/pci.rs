//! A cell with a PCI function: it has that one and no other, the root does not have it meanwhile, and gets it back as it
//! was.
//!
//! The machine has one more function than the others, a network card that Linux has no driver for. There is neither MSI
//! nor memory-mapped configuration space on it.

use anyhow::{Context as _, Result, ensure};

use super::{CPUS, Context, load_modules};
use crate::gaol::Gaol;
use crate::machine::Platform;
use crate::runner::{Check, Except, Group};

/// Where the cell has the card's registers.
const REGISTERS: u64 = 0x40_0000;
/// Vendor and device of the card, as Linux shows them.
const CARD: (&str, &str) = ("0x8086", "0x100e");

pub(super) const GROUP: Group = Group {
    name: "pci",
    machine: |mut spec| {
        spec.network_card = true;
        Ok(spec)
    },
    prepare: |context| {
        load_modules(context)?;
        context.enable()
    },
    except: &[Except::group(
        Platform::Qemu,
        "functions have an IOMMU and MSIs there, which the group `assignment` shows",
    )],
    checks: &[
        Check {
            name: "a-cell-has-its-function-and-no-other",
            run: own_function,
        },
        Check {
            name: "the-root-has-it-back-as-it-was",
            run: handed_back,
        },
        Check {
            name: "a-function-is-taken-from-its-driver-and-given-back",
            run: bound,
        },
        Check {
            name: "dma-that-nothing-holds-needs-leave",
            run: unprotected,
        },
    ],
};

/// The network card, as Linux sees it.
struct Card {
    /// Its directory in sysfs.
    path: String,
    /// "0000:00:02.0".
    address: String,
    memory: (u64, u64),
    ports: (u64, u64),
}

fn card(context: &mut Context) -> Result<Card> {
    let (vendor, device) = CARD;
    let path = context.machine.check(&format!(
        "for f in /sys/bus/pci/devices/*; do [ $(cat $f/vendor) = {vendor} ] && [ $(cat $f/device) = {device} ] && echo $f; done; :"
    ))?;
    let path = path.trim().to_owned();
    let address = path.rsplit('/').next().unwrap_or_default().to_owned();
    ensure!(
        address.len() == 12,
        "the machine has no network card: {path:?}"
    );
    let resources = context
        .machine
        .check(&format!("head -n 2 {path}/resource"))?;
    let ranges: Vec<(u64, u64)> = resources
        .lines()
        .filter_map(|line| {
            let mut numbers = line
                .split_whitespace()
                .filter_map(|number| u64::from_str_radix(number.trim_start_matches("0x"), 16).ok());
            let (first, last) = (numbers.next()?, numbers.next()?);
            Some((first, last - first + 1))
        })
        .collect();
    match ranges[..] {
        [memory, ports] if memory.0 != 0 && ports.0 != 0 => Ok(Card {
            path,
            address,
            memory,
            ports,
        }),
        _ => anyhow::bail!("the card has no addresses: {resources}"),
    }
}

/// Configuration space as the root reads it.
fn configuration(context: &mut Context, card: &Card) -> Result<Vec<u8>> {
    let text = context.machine.check(&format!(
        "od -An -v -tx1 {}/config | tr -d ' \\n'",
        card.path
    ))?;
    let text = text.trim();
    ensure!(text.len() == 512, "configuration space reads as {text:?}");
    (0..256)
        .map(|byte| u8::from_str_radix(&text[2 * byte..2 * byte + 2], 16).map_err(Into::into))
        .collect()
}

/// The file of a cell with the card, which never becomes bus master.
fn write_cell(context: &mut Context, card: &Card) -> Result<()> {
    write_cell_with(context, card, "", "bus-master = false")
}

/// The same with these keys for the cell and for the card.
fn write_cell_with(context: &mut Context, card: &Card, keys: &str, of_card: &str) -> Result<()> {
    let (memory, size) = card.memory;
    let (first, count) = card.ports;
    let text = format!(
        "name = \"owner\"\ncpus = [2]\nconsole = true\n{keys}\nports = [{{ first = {first:#x}, count = {count} }}]\n\n\
         [[memory]]\nname = \"ram\"\nat = 0x0\nsize = \"1 MiB\"\naccess = \"rwx\"\nloadable = true\n\n\
         [[memory]]\nname = \"communication\"\nkind = \"communication\"\nat = 0x100000\n\n\
         [[memory]]\nname = \"registers\"\nkind = \"device\"\nat = {REGISTERS:#x}\nphysical = {memory:#x}\nsize = {size}\n\n\
         [[devices]]\naddress = \"{}\"\n{of_card}\n",
        card.address
    );
    context
        .machine
        .write_file("/root/owner.toml", text.as_bytes())
}

/// Runs the cell to its end; returns what it has said.
fn run(context: &mut Context, card: &Card) -> Result<String> {
    write_cell(context, card)?;
    run_written(context, card)
}

fn run_written(context: &mut Context, card: &Card) -> Result<String> {
    let (ports, _) = card.ports;
    context.start_cell_with(
        "owner",
        "violator",
        &format!("do=pci registers={REGISTERS:#x} ports={ports:#x}"),
    )?;
    for _ in 0..100 {
        let console = context.machine.check("gaol console")?;
        let said = console
            .rsplit_once("violator: do pci")
            .map_or("", |(_, said)| said);
        if said.contains("violator: survived") {
            return Ok(said.to_owned());
        }
        context.machine.check("sleep 0.3")?;
    }
    let console = context.machine.check("gaol console")?;
    let list = context.machine.gaol("cell list")?;
    anyhow::bail!("it did not get to its end: {console}\n{list}")
}

/// The number behind these words.
fn number(said: &str, words: &str) -> Result<u32> {
    let rest = said
        .split_once(&format!("violator: {words} "))
        .with_context(|| format!("`{words}` was not said: {said}"))?
        .1;
    let digits = rest.split_whitespace().next().unwrap_or_default();
    Ok(u32::from_str_radix(digits, 16)?)
}

fn own_function(context: &mut Context) -> Result<()> {
    let card = card(context)?;
    let before = configuration(context, &card)?;
    let said = run(context, &card)?;
    ensure!(
        said.contains("violator: 1 functions") && said.contains("found 100e8086"),
        "it does not have the one function: {said}"
    );
    let (memory, ports) = (card.memory.0 as u32, card.ports.0 as u32);
    let bar = |number: u32, real: u32, mask: u32, moved: u32| {
        format!("bar {number} is {real:08x} mask {mask:08x} moved {moved:08x} back {real:08x}")
    };
    let memory_mask = !(card.memory.1 as u32 - 1);
    let port_mask = !(card.ports.1 as u32 - 1);
    for line in [
        bar(0, memory, memory_mask, 0x1234_5000 & memory_mask),
        bar(1, ports | 1, port_mask | 1, 0x1234_5000 & port_mask | 1),
        bar(2, 0, 0, 0),
        "rom 00000000".to_owned(),
        "not enabled ffffffff".to_owned(),
        "others were written to".to_owned(),
        "id is 100e8086".to_owned(),
    ] {
        ensure!(
            said.contains(&format!("violator: {line}")),
            "`{line}` was not said: {said}"
        );
    }
    // The device status register: not all ones, and the same wherever the cell moves it to. Bochs' card has no data behind
    // its ports: that they are the cell's is seen by its going on.
    let on = number(&said, "on")?;
    ensure!(on != u32::MAX && on != 0, "its registers read as {on:#x}");
    ensure!(number(&said, "moved on")? == on, "{said}");
    number(&said, "ports")?;
    for value in ["0004", "ffff", "0147"] {
        let command = number(&said, &format!("command {value} is"))?;
        ensure!(command & 0x4 == 0, "the cell made it bus master: {said}");
    }
    ensure!(number(&said, "command is")? & 0x144 == 0, "{said}");
    // The root finds nothing there as long as the cell has it, and writes nothing.
    let violations = violations(context)?;
    let path = &card.path;
    context.machine.check(&format!(
        "printf '\\007' | dd of={path}/config bs=1 seek=4 conv=notrunc 2>/dev/null; :"
    ))?;
    ensure!(
        configuration(context, &card)?
            .iter()
            .all(|byte| *byte == 0xff),
        "the root sees a function of a cell"
    );
    ensure!(
        violations < self::violations(context)?,
        "what the root did is not counted"
    );
    let ones = Some(0xffff_ffff);
    let at = card.memory.0 + 8;
    ensure!(
        context.poke(&format!("r32 {at:#x}"))? == ones,
        "the root reads registers of a cell's function"
    );
    context.machine.gaol("cell destroy owner --force")?;
    context.machine.linux_is_well(CPUS)?;
    same(&before, &configuration(context, &card)?)?;
    ensure!(
        context.poke(&format!("r32 {at:#x}"))? != ones || before[4] & 2 == 0,
        "the root does not have the registers back"
    );
    // What the cell wrote to others' functions went nowhere: Linux works with its disk controller and bridges.
    let devices = context.machine.check("ls /sys/bus/pci/devices | wc -l")?;
    ensure!(devices.trim().parse::<u32>()? > 3, "{devices}");
    Ok(())
}

/// Everything is as it was.
fn same(before: &[u8], after: &[u8]) -> Result<()> {
    for (at, (before, after)) in before.iter().zip(after).enumerate() {
        ensure!(
            before == after,
            "byte {at:#x} was {before:#04x} and is {after:#04x}"
        );
    }
    Ok(())
}

fn violations(context: &mut Context) -> Result<u64> {
    context.machine.part("root", "root_violations")
}

fn handed_back(context: &mut Context) -> Result<()> {
    let card = card(context)?;
    let all =
        "for f in /sys/bus/pci/devices/*; do od -An -v -tx1 $f/config | tr -d ' \\n'; echo; done";
    let every = context.machine.check(all)?;
    for _ in 0..3 {
        run(context, &card)?;
        // Shut down, it waits for another start; the root does not have it yet.
        context.machine.gaol("cell shutdown owner --force")?;
        ensure!(configuration(context, &card)?[0] == 0xff);
        context.machine.gaol("cell destroy owner --force")?;
        ensure!(
            context.machine.check(all)? == every,
            "configuration space of some function is not as it was"
        );
    }
    // Linux has switched more on by then: that comes back, too.
    let path = &card.path;
    context
        .machine
        .check(&format!("echo 1 >{path}/enable && cat {path}/enable"))?;
    let before = configuration(context, &card)?;
    ensure!(before[4] & 3 != 0, "Linux did not switch it on");
    run(context, &card)?;
    context.machine.gaol("cell destroy owner --force")?;
    same(&before, &configuration(context, &card)?)?;
    context.machine.check(&format!("echo 0 >{path}/enable"))?;
    context.machine.linux_is_well(CPUS)
}

fn bound(context: &mut Context) -> Result<()> {
    let card = card(context)?;
    write_cell(context, &card)?;
    let driver = "/sys/bus/pci/drivers/gaol-test";
    let address = &card.address;
    context.machine.check(&format!(
        "echo 8086 100e >{driver}/new_id && [ -e {driver}/{address} ]"
    ))?;
    let before = configuration(context, &card)?;
    let held = |context: &mut Context| context.machine.check("cat /sys/devices/gaol/pci_functions");
    let has_driver = format!("[ -e {driver}/{address} ]");
    context.machine.gaol("cell create owner.toml")?;
    ensure!(held(context)?.trim() == format!("{address} gaol-test held owner"));
    context.machine.check(&format!(
        "[ ! -e {driver}/{address} ] && [ -e /sys/bus/pci/drivers/gaol/{address} ]"
    ))?;
    // Nobody gets it meanwhile, and this module not either.
    let output = context
        .machine
        .run(&format!("echo {address} >{driver}/bind"))?;
    ensure!(output.status != 0, "another driver has it");
    context.machine.gaol("cell destroy owner --force")?;
    context.machine.check(&has_driver)?;
    ensure!(held(context)?.trim().is_empty());
    same(&before, &configuration(context, &card)?)?;
    // A creation that the hypervisor refuses gives it back, too.
    write_cell_with(context, &card, "", "")?;
    let output = context
        .machine
        .run("gaol cell create owner.toml --unchecked")?;
    ensure!(output.status == 1, "{}", output.stdout);
    context.machine.check(&has_driver)?;
    // So does the end of all cells.
    write_cell(context, &card)?;
    context.machine.gaol("cell create owner.toml")?;
    context.machine.gaol("disable --force")?;
    context.machine.check(&has_driver)?;
    same(&before, &configuration(context, &card)?)?;
    context.machine.check(&format!(
        "echo 8086 100e >{driver}/remove_id && echo {address} >{driver}/unbind"
    ))?;
    context.enable()?;
    context.machine.linux_is_well(CPUS)
}

/// There is no IOMMU on the machine: command and hypervisor refuse the cell, unless it says that it accepts that, and then
/// it is warned of, and the card becomes bus master.
fn unprotected(context: &mut Context) -> Result<()> {
    let card = card(context)?;
    for keys in ["", "unprotected-dma = false"] {
        write_cell_with(context, &card, keys, "")?;
        // Unchecked, only the hypervisor looks.
        for flags in ["", "--unchecked"] {
            let output = context
                .machine
                .run(&format!("gaol cell create owner.toml {flags}"))?;
            ensure!(output.status == 1, "it was not refused: {}", output.stdout);
            for words in [
                "no IOMMU keeps",
                card.address.as_str(),
                "`bus-master = false`",
            ] {
                let text = output
                    .stdout
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ");
                ensure!(text.contains(words), "`{words}` is missing: {text}");
            }
        }
    }
    let before = configuration(context, &card)?;
    write_cell_with(context, &card, "unprotected-dma = true", "")?;
    let output = context.machine.run("gaol cell create owner.toml")?;
    ensure!(output.status == 0, "{}", output.stdout);
    let text = output
        .stdout
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    ensure!(
        text.contains("warning: cell \"owner\" can read and write all memory"),
        "it was not warned of: {text}"
    );
    let list = context.machine.gaol("cell list")?;
    let is_told = list["cells"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|cell| cell["name"] == "owner" && cell["unprotected_dma"] == true);
    ensure!(is_told, "{list}");
    let console = context.machine.check("gaol console")?;
    ensure!(console.contains("WARNING: cell "), "{console}");
    context.machine.gaol("cell destroy owner")?;
    let said = run_written(context, &card)?;
    for value in ["0004", "ffff", "0147"] {
        let command = number(&said, &format!("command {value} is"))?;
        ensure!(command & 0x4 != 0, "it can't be bus master: {said}");
        ensure!(command & 0x140 == 0, "it reports errors: {said}");
    }
    context.machine.gaol("cell shutdown owner --force")?;
    context.machine.gaol("cell destroy owner --force")?;
    same(&before, &configuration(context, &card)?)?;
    let list = context.machine.gaol("cell list")?;
    ensure!(
        list["cells"]
            .as_array()
            .is_some_and(|cells| cells.len() == 1),
        "{list}"
    );
    context.machine.linux_is_well(CPUS)
}
