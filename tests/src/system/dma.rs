//! Devices of a cell that attack by DMA and interrupts, while a cell beside them takes its ticks, and the root looks at its
//! memory.
//!
//! The table of attacks is `cells/edu-dma/src/attacks`. What the attacking cell sees is compared with it row by row; that
//! nothing else has changed is looked at from the root.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use edu_dma_cell::attack::{Attack, LEFT, LEFT_AT, LENGTH, Leave, Place};
use edu_dma_cell::attacks::{self, Expected};
use edu_dma_cell::outcome::{Line, Outcome, PREFIX};
use gaol_wire::Peer;
use gaol_wire::frame::{Content, Datagram, Frame, Host};
use gaol_wire::peer::NEAR;
use serde_json::Value;

use super::root::cell_region;
use super::{CPUS, Context, load_modules};
use crate::gaol::Gaol;
use crate::machine::{Platform, Wired};
use crate::runner::{Check, Except, Group};

const CELL: &str = "edu-dma";
/// The cell beside.
const VICTIM: &str = "latency";
/// Its CPU, and the id of that.
const VICTIM_CPU: u32 = 3;
/// A page of the root's kernel, which does not change, for the attacks on the root's memory.
const ROOT: u64 = 0x130_0000;
/// What the rows on the root's memory are sent to: addresses and words of 8 bytes.
const WATCHED: [(u64, u64); 5] = [
    (0x100_0000, 8),
    (0x120_0040, 8),
    (ROOT, 8),
    (ROOT + 0x100, 8),
    (ROOT + 0xfc0, 16),
];
/// Where in the region `frames` the driver has the first buffer, and the content of a datagram in a frame.
const FIRST_BUFFER: u64 = 0x2000;
const CONTENT: u64 = 48;
/// Bytes in front of that, behind the headers of Ethernet, IPv4 and UDP.
const HEADERS: u64 = 14 + 20 + 8;

/// The devices.
const EDU: &str = "0000:00:04.0";
const CARD: &str = "0000:00:03.0";
/// The cell's memory for devices that the rows are about.
const OWN: Range<u64> = 0x20_0000..0x21_0000;
/// The first reason of faults of interrupts (VT-d, "Fault Reason Encodings").
const FIRST_INTERRUPT_REASON: u64 = 0x20;
/// How often a look at a cell takes what the IOMMU has recorded, one after the other.
const LOOKS: u32 = 500;

const NO_DEVICES: &str = "Bochs has no IOMMU, and no device that does DMA on command";

pub(super) const GROUP: Group = Group {
    name: "dma",
    machine: |mut spec| {
        spec.wired = Some(Wired::E1000e);
        // The IOMMU's remapping of DMA is Gaol's then; Linux goes on to remap its interrupts.
        spec.command_line.push_str(" intel_iommu=off");
        Ok(spec)
    },
    prepare: |context| {
        load_modules(context)?;
        context.enable()
    },
    except: &[Except::group(Platform::Bochs, NO_DEVICES)],
    checks: &[
        Check {
            name: "no-attack-of-a-device-succeeds",
            run: attacked,
        },
        Check {
            name: "a-device-at-work-ends-with-its-cell",
            run: left,
        },
        Check {
            name: "a-storm-of-faults-ends-in-quarantine",
            run: storm,
        },
    ],
};

/// The words of the root's memory that are watched.
fn watched(context: &mut Context) -> Result<Vec<u64>> {
    let mut words = Vec::new();
    for (address, count) in WATCHED {
        for number in 0..count {
            let at = address + 8 * number;
            let word = context.poke(&format!("r64 {at:#x}"))?;
            words.push(word.with_context(|| format!("{at:#x} cannot be read"))?);
        }
    }
    ensure!(
        words.iter().any(|word| *word != 0 && *word != u64::MAX),
        "the root's memory is not there: {words:x?}"
    );
    Ok(words)
}

/// Where others are, for the command line.
fn targets(context: &mut Context) -> Result<String> {
    let (hypervisor, _) = context.region()?;
    let victim = cell_region(context, VICTIM, "ram")?;
    Ok(format!(
        "root={ROOT:#x} hypervisor={hypervisor:#x} victim={victim:#x} victim-cpu={VICTIM_CPU}"
    ))
}

/// Waits until the cell has said `text`; returns all that it has said since it was started.
fn said(context: &mut Context, text: &str) -> Result<String> {
    said_while(context, text, |_| Ok(()))
}

/// The same, with a look at something again and again.
fn said_while(
    context: &mut Context,
    text: &str,
    mut look: impl FnMut(&mut Context) -> Result<()>,
) -> Result<String> {
    for _ in 0..600 {
        look(context)?;
        let console = context.machine.check("gaol console")?;
        if console.contains("cell failed") {
            bail!("the cell failed: {console}");
        }
        if console.contains(text) {
            return Ok(console);
        }
        context.machine.check("sleep 0.5")?;
    }
    let console = context.machine.check("gaol console | tail -n 5")?;
    let list = context.machine.gaol("cell list")?;
    bail!("`{text}` was not said, but: {console}; {list}")
}

/// Asserts that no interrupt came to Linux that it does not know.
fn no_strange_interrupts(context: &mut Context) -> Result<()> {
    let said = context
        .machine
        .run("dmesg | grep -i -E 'no irq handler|unexpected IRQ|spurious|NMI:|SMI'")?;
    ensure!(said.stdout.trim().is_empty(), "{}", said.stdout.trim());
    Ok(())
}

fn compare(console: &str) -> Result<usize> {
    let told: BTreeMap<usize, Outcome> = console
        .lines()
        .filter_map(|line| match Line::parse(line)? {
            Line::Row(number, outcome) => Some((number, outcome)),
            Line::Left(_) => None,
        })
        .collect();
    let mut wrong = Vec::new();
    let mut attacks = 0;
    // The emulator lets messages without remapping through, though it remaps others.
    for (number, row) in attacks::plain(false) {
        attacks += usize::from(row.is_attack());
        let outcome = told.get(&number);
        if !outcome.is_some_and(|outcome| row.is_right(*outcome)) {
            let became = outcome.map_or("not told".to_owned(), Outcome::to_string);
            wrong.push(format!(
                "row {number}, \"{}\" ({:?}): expected {:?}, but it was {became}",
                row.name, row.attack, row.expected
            ));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} rows are wrong:\n  {}",
        wrong.len(),
        wrong.join("\n  ")
    );
    Ok(attacks)
}

/// What an IOMMU has stopped of a function, as the list of cells tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stopped {
    cell: u64,
    address: u64,
    is_read: bool,
}

/// The entry of the list of cells for what the function tried; `None`: it tried nothing.
fn faults(context: &mut Context, function: &str) -> Result<Option<Value>> {
    let list = context.machine.gaol("cell list")?;
    let devices = list["iommus"]["devices"].as_array();
    let devices = devices.with_context(|| format!("the list has no devices: {list}"))?;
    let found = devices.iter().find(|one| one["function"] == function);
    Ok(found.cloned())
}

/// Its last fault by DMA.
fn stopped(faults: &Value) -> Result<Option<Stopped>> {
    let number = |name| {
        faults[name]
            .as_u64()
            .with_context(|| format!("no {name} in {faults}"))
    };
    Ok(
        (number("reason")? < FIRST_INTERRUPT_REASON).then_some(Stopped {
            cell: number("cell")?,
            address: number("address")?,
            is_read: faults["read"] == true,
        }),
    )
}

/// The id of a cell.
fn id(context: &mut Context, cell: &str) -> Result<u64> {
    let list = context.machine.gaol("cell list")?;
    let mut cells = list["cells"].as_array().into_iter().flatten();
    let found = cells.find(|one| one["name"] == cell);
    found
        .and_then(|one| one["id"].as_u64())
        .with_context(|| format!("{list} has no cell {cell}"))
}

/// The pages that an attack by DMA is on, and whether it reads; `None`: it is another one.
fn transfer(context: &mut Context, attack: Attack) -> Result<Option<(RangeInclusive<u64>, bool)>> {
    let (place, is_read) = match attack {
        Attack::Read(place) => (place, true),
        Attack::Write(place) => (place, false),
        _ => return Ok(None),
    };
    let address = match place {
        Place::Own(offset) => OWN.start + u64::from(offset),
        Place::BeforeEnd(before) => OWN.end - u64::from(before),
        Place::BeforeBegin(before) => OWN.start - u64::from(before),
        Place::At(address) => address.into(),
        Place::Root(offset) => ROOT + u64::from(offset),
        Place::Hypervisor(offset) => context.region()?.0 + u64::from(offset),
        Place::Victim(offset) => cell_region(context, VICTIM, "ram")? + u64::from(offset),
    };
    let last = address + u64::from(LENGTH) - 1;
    Ok(Some((address >> 12..=last >> 12, is_read)))
}

/// What rows make a device do.
fn transfers(context: &mut Context) -> Result<Vec<(RangeInclusive<u64>, bool)>> {
    let attacks = attacks::all().filter(|(_, row)| row.is_attack());
    attacks
        .filter_map(|(_, row)| transfer(context, row.attack).transpose())
        .collect()
}

/// The last event of the trace is the fault that the list of cells tells of, with the cell's name.
fn traced(context: &mut Context, told: &Value) -> Result<()> {
    let trace = context.machine.gaol("trace")?;
    let events = trace["events"].as_array().into_iter().flatten();
    let mut faults = events.filter(|event| event["kind"] == "device_fault");
    let last = faults
        .next_back()
        .with_context(|| format!("no fault of a device: {trace}"))?;
    for key in ["function", "cell", "address", "reason", "read", "time"] {
        ensure!(
            !told[key].is_null() && last[key] == told[key],
            "{key}: {last}, and the list of cells says {told}"
        );
    }
    ensure!(last["cell_name"] == CELL, "{last}");
    let text = context.machine.check("gaol trace")?;
    let (function, address) = (&told["function"], told["address"].as_u64().unwrap_or(0));
    let words = format!(
        "PCI function {} of cell \"{CELL}\": a {} at {address:#x} was stopped by its IOMMU",
        function.as_str().unwrap_or_default(),
        if told["read"] == true {
            "read"
        } else {
            "write"
        }
    );
    ensure!(text.contains(&words), "no `{words}` in {text}");
    Ok(())
}

/// Repeats attacks on the root, the hypervisor and the other cell one by one: each is told as it was. Returns how many.
fn each_is_told(context: &mut Context, cell: u64, targets: &str) -> Result<usize> {
    let rows: Vec<_> = attacks::all()
        .filter(|(_, row)| {
            matches!(
                row.attack,
                Attack::Read(Place::Root(0) | Place::Hypervisor(0) | Place::Victim(0))
                    | Attack::Write(Place::Root(0x100) | Place::Hypervisor(0) | Place::Victim(0))
            )
        })
        .collect();
    for (number, row) in &rows {
        let before = faults(context, EDU)?.map_or(0, |one| one["count"].as_u64().unwrap_or(0));
        start_again(
            context,
            &format!("do=row row={number} {targets}"),
            &format!("{PREFIX}done"),
        )?;
        let found = faults(context, EDU)?.context("no fault is told")?;
        let count = found["count"].as_u64().unwrap_or(0);
        ensure!(count == before + 1, "{}: {before}, then {found}", row.name);
        let stopped = stopped(&found)?.with_context(|| format!("{}: {found}", row.name))?;
        let (pages, is_read) = transfer(context, row.attack)?.context("no transfer")?;
        traced(context, &found)?;
        ensure!(
            stopped.cell == cell
                && stopped.is_read == is_read
                && pages.contains(&(stopped.address >> 12)),
            "{}: {found}",
            row.name
        );
    }
    Ok(rows.len())
}

fn attacked(context: &mut Context) -> Result<()> {
    context.start_cell(VICTIM, "ticks=1000000000 summary=0 exits=0")?;
    let targets = targets(context)?;
    let before = watched(context)?;
    context.start_cell(CELL, &format!("do=attacks {targets}"))?;
    let cell = id(context, CELL)?;
    // The unit has room for one fault, so that only what is looked for in time is seen.
    let mut seen = BTreeSet::new();
    let console = said_while(context, &format!("{PREFIX}done"), |context| {
        if let Some(faults) = faults(context, EDU)? {
            seen.extend(stopped(&faults)?);
        }
        Ok(())
    })?;
    let attacks = compare(&console)?;
    ensure!(attacks >= 100, "only {attacks} attacks");
    println!(
        "dma: 0 of {attacks} attacks by devices succeeded; {} faults were seen",
        seen.len()
    );
    let transfers = transfers(context)?;
    for one in seen {
        ensure!(one.cell == cell, "{one:x?} is not of cell {cell}");
        let page = one.address >> 12;
        ensure!(
            transfers
                .iter()
                .any(|(pages, is_read)| pages.contains(&page) && *is_read == one.is_read),
            "no row attempts {one:x?}"
        );
    }
    let named = each_is_told(context, cell, &targets)?;
    println!("dma: {named} faults were told one by one");
    ensure!(
        watched(context)? == before,
        "the root's memory has changed under the attacks"
    );
    let ticks = |context: &mut Context| -> Result<u64> {
        let histogram = context.machine.histogram(VICTIM)?;
        Ok(histogram
            .context("the cell beside has no results")?
            .ticks_done)
    };
    let ticks_before = ticks(context)?;
    context.machine.check("sleep 1")?;
    ensure!(
        ticks(context)? > ticks_before,
        "the cell beside stands still"
    );
    ensure!(context.cell_state(VICTIM)? == "running");
    for cell in [CELL, VICTIM] {
        context.machine.gaol(&format!("cell destroy {cell}"))?;
    }
    no_strange_interrupts(context)?;
    context.machine.linux_is_well(CPUS)
}

/// Rows that leave a device to itself.
fn leaving() -> impl Iterator<Item = (usize, Leave)> {
    attacks::all().filter_map(|(number, row)| match (row.attack, row.expected) {
        (Attack::Leave(what), Expected::Ended) => Some((number, what)),
        _ => None,
    })
}

/// The row that looks whether a function is bus master too early.
fn early_rows() -> impl Iterator<Item = usize> {
    attacks::all().filter_map(|(number, row)| {
        matches!(row.attack, Attack::MasterAtStart(_)).then_some(number)
    })
}

/// Shuts the cell down, whose device is at work, and starts it again; waits until it has said `text` once more.
fn start_again(context: &mut Context, command_line: &str, text: &str) -> Result<String> {
    let before = context.machine.check("gaol console")?.len();
    context
        .machine
        .gaol(&format!("cell shutdown {CELL} --force"))?;
    context.machine.gaol(&format!(
        "cell load {CELL} {CELL}.bin -s \"{command_line}\""
    ))?;
    context.machine.gaol(&format!("cell start {CELL}"))?;
    for _ in 0..200 {
        let console = context.machine.check("gaol console")?;
        let since = console.get(before..).unwrap_or(&console);
        ensure!(!since.contains("cell failed"), "{since}");
        if since.contains(text) {
            return Ok(since.to_owned());
        }
        context.machine.check("sleep 0.1")?;
    }
    bail!("`{text}` was not said again")
}

/// A device that was at work when its cell was shut down does not go on by itself when that starts again.
fn again(context: &mut Context) -> Result<()> {
    for number in early_rows() {
        let said = start_again(
            context,
            &format!("do=row row={number}"),
            &format!("{PREFIX}done"),
        )?;
        let line = Line::Row(number, Outcome::Value(0)).to_string();
        ensure!(said.contains(&line), "`{line}` is missing in {said}");
    }
    Ok(())
}

/// A frame with the mark, for the card.
fn marked(card: Host) -> Vec<u8> {
    Frame {
        from: NEAR,
        to: card,
        content: Content::Udp(Datagram {
            from: 1,
            to: 2,
            data: [vec![0; (CONTENT - HEADERS) as usize], LEFT.repeat(32)].concat(),
        }),
    }
    .bytes()
}

fn left(context: &mut Context) -> Result<()> {
    // The card's address, which is QEMU's first.
    let card = Host {
        hardware: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
        address: [10, 0, 2, 15].into(),
    };
    let mark = u64::from_le_bytes(LEFT);
    for (number, what) in leaving() {
        context.start_cell(CELL, &format!("do=leave row={number}"))?;
        said(context, &Line::Left(number).to_string())?;
        let at = match what {
            Leave::Receive => cell_region(context, CELL, "frames")? + FIRST_BUFFER + CONTENT,
            _ => cell_region(context, CELL, "transfers")? + LEFT_AT,
        };
        let send = |context: &mut Context| -> Result<()> {
            for _ in 0..10 {
                context.machine.wire()?.send(&marked(card))?;
            }
            Ok(())
        };
        send(context)?;
        again(context)?;
        start_again(
            context,
            &format!("do=leave row={number}"),
            &Line::Left(number).to_string(),
        )?;
        send(context)?;
        context
            .machine
            .gaol(&format!("cell destroy {CELL} --force"))?;
        for _ in 0..10 {
            send(context)?;
            let word = context.poke(&format!("r64 {at:#x}"))?;
            ensure!(
                word != Some(mark),
                "{what:?}: the device writes to {at:#x}, though its cell has gone"
            );
            context.machine.check("sleep 0.1")?;
        }
        no_strange_interrupts(context)?;
        context.machine.linux_is_well(CPUS)?;
    }
    // Nobody has the card any more.
    let mut peer = Peer::to(context.machine.wire()?, card);
    ensure!(peer.resolve(Duration::from_secs(1))?.is_none());
    Ok(())
}

fn storm(context: &mut Context) -> Result<()> {
    let storm = attacks::all().find(|(_, row)| row.attack == Attack::Leave(Leave::Storm));
    let (number, _) = storm.context("the table has no storm")?;
    context.start_cell(VICTIM, "ticks=1000000000 summary=0 exits=0")?;
    context.start_cell(CELL, &format!("do=leave row={number}"))?;
    said(context, &Line::Left(number).to_string())?;
    let cell = id(context, CELL)?;
    // Each look takes what the unit has recorded since the one before.
    let look = format!(
        "i=0; while [ $i -lt {LOOKS} ]; do read -r state </sys/devices/gaol/cells/{cell}/state; i=$((i+1)); done"
    );
    let mut found = Value::Null;
    for _ in 0..200 {
        context.machine.check(&look)?;
        found = faults(context, CARD)?.unwrap_or_default();
        if found["quarantined"] == true {
            break;
        }
    }
    ensure!(found["quarantined"] == true, "not quarantined: {found}");
    ensure!(found["cell"] == cell, "{found} is not of cell {cell}");
    println!("dma: quarantined after {} faults", found["count"]);
    let text = context.machine.check("gaol cell list")?;
    ensure!(
        text.contains(CARD) && text.contains("reaches no memory until the cell is started again"),
        "{text}"
    );
    // It is blocked, and makes no more work.
    context.machine.check(&look)?;
    let later = faults(context, CARD)?.unwrap_or_default();
    ensure!(later["count"] == found["count"], "{found}, then {later}");
    ensure!(context.cell_state(VICTIM)? == "running");
    // With the next start it has another chance.
    again(context)?;
    let after = faults(context, CARD)?.unwrap_or_default();
    ensure!(after["quarantined"] == false, "{after}");
    for cell in [CELL, VICTIM] {
        context
            .machine
            .gaol(&format!("cell destroy {cell} --force"))?;
    }
    context.machine.linux_is_well(CPUS)
}
