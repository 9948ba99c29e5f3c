//! A network card in a cell: somebody at the other end of its cable asks, and the cell answers without an exit, but for the end
//! of an interrupt where the CPU has no x2APIC.
//!
//! What is asserted on is content and counts; times are measured and told.

use anyhow::{Result, ensure};
use gaol_abi::network::{NOT_COUNTED, NetworkStatistics};
use gaol_wire::peer::{Kind, LONGEST, Questions};
use gaol_wire::{Peer, RoundTrips};

use super::{CPUS, Context, load_modules};
use crate::gaol::Gaol;
use crate::machine::{Platform, Wired};
use crate::runner::{Check, Except, Group};

/// The address of the cell.
const ADDRESS: [u8; 4] = [10, 0, 2, 15];
/// Questions of each kind and size.
const COUNT: u16 = 100;
/// Sizes of content, around what fits the shortest frame, and up to the longest.
const SIZES: [usize; 5] = [8, 18, 56, 1000, LONGEST];
/// How many are asked at a time in a burst: fewer than the ring has descriptors.
const BURST: usize = 32;

/// The card's pin on Bochs, as the cell's file has it.
const LINE: u8 = 18;
/// And on QEMU, where no device of Linux shares it, and no file has it: the card has messages there.
const LINE_ON_QEMU: u8 = 23;
/// The cell's file there.
const CONFIGURATION: &str = include_str!("../../../configs/net.toml");

const NO_MESSAGES: &str = "Bochs' network card has neither MSI nor MSI-X";

pub(super) const GROUP: Group = Group {
    name: "net",
    machine: |mut spec| {
        spec.network_card = spec.platform == Platform::Bochs;
        spec.wired = Some(match spec.platform {
            Platform::Bochs => Wired::E1000,
            Platform::Qemu | Platform::Kvm => Wired::E1000e,
        });
        let name = "cpus = [2]";
        ensure!(CONFIGURATION.contains(name));
        let with_line = format!("{name}\ninterrupts = [{LINE_ON_QEMU}]");
        Ok(spec.content(
            "root/net-line.toml",
            CONFIGURATION.replace(name, &with_line),
        ))
    },
    prepare: |context| {
        load_modules(context)?;
        context.enable()
    },
    except: &[
        Except::check(Platform::Bochs, "it-answers-by-msi", NO_MESSAGES),
        Except::check(Platform::Bochs, "it-answers-by-msi-x", NO_MESSAGES),
    ],
    checks: &[
        Check {
            name: "it-answers-by-polling-without-an-exit",
            run: |context| answers(context, "poll"),
        },
        Check {
            name: "it-answers-by-its-line",
            run: |context| answers(context, "intx"),
        },
        Check {
            name: "it-answers-by-msi",
            run: |context| answers(context, "msi"),
        },
        Check {
            name: "it-answers-by-msi-x",
            run: |context| answers(context, "msix"),
        },
        Check {
            name: "malformed-frames-do-no-harm",
            run: malformed,
        },
        Check {
            name: "it-answers-again-after-a-restart",
            run: again,
        },
    ],
};

/// The cell of the machine: with no IOMMU in front of its card, or with one.
fn cell(platform: Platform) -> &'static str {
    match platform {
        Platform::Bochs => "net-bochs",
        Platform::Qemu | Platform::Kvm => "net",
    }
}

fn start(context: &mut Context, mode: &str) -> Result<()> {
    let cell = cell(context.platform);
    // A cell does not see what the firmware wrote down, and has to be told.
    let line = match (mode, context.platform) {
        ("intx", Platform::Bochs) => format!(" line={LINE}"),
        ("intx", _) => format!(" line={LINE_ON_QEMU}"),
        _ => String::new(),
    };
    let file = match (mode, context.platform) {
        ("intx", Platform::Qemu | Platform::Kvm) => "net-line.toml".to_owned(),
        _ => format!("{cell}.toml"),
    };
    context.start_cell_of(&file, cell, "net", &format!("mode={mode}{line}"))?;
    let console = context.wait_console("net: ready")?;
    ensure!(
        !console.contains("cell failed") && console.contains(mode),
        "{console}"
    );
    Ok(())
}

fn destroy(context: &mut Context) -> Result<()> {
    let cell = cell(context.platform);
    context.machine.gaol(&format!("cell destroy {cell}"))?;
    context.machine.linux_is_well(CPUS)
}

/// Asks all that there is to ask. Returns what came of it, and how many questions that were.
fn ask(peer: &mut Peer<'_>) -> Result<RoundTrips> {
    let mut all = RoundTrips::default();
    for kind in [Kind::Ping, Kind::Datagram] {
        for size in SIZES {
            all.add(&peer.ask(Questions::new(kind, COUNT).size(size))?);
        }
        all.add(&peer.ask(Questions::new(kind, COUNT).window(BURST))?);
    }
    Ok(all)
}

/// What passed between two looks.
fn between(before: &NetworkStatistics, after: &NetworkStatistics) -> NetworkStatistics {
    NetworkStatistics {
        signature: after.signature,
        received: after.received - before.received,
        bad: after.bad - before.bad,
        sent: after.sent - before.sent,
        refused: after.refused - before.refused,
        interrupts: after.interrupts - before.interrupts,
        exits: after.exits - before.exits,
        end_of_interrupt_exits: after.end_of_interrupt_exits,
    }
}

fn answers(context: &mut Context, mode: &str) -> Result<()> {
    start(context, mode)?;
    let platform = context.platform;
    let mut peer = Peer::find(context.machine.wire()?, ADDRESS.into())?;
    let before = peer.statistics()?;
    ensure!(before.exits != NOT_COUNTED, "exits are not counted");
    let trips = ask(&mut peer)?;
    let passed = between(&before, &peer.statistics()?);
    println!("net by {mode} on {}: {trips}", platform.name());
    ensure!(trips.is_perfect(), "{trips}, {passed:?}");
    ensure!(trips.sent == 12 * u64::from(COUNT));
    ensure!(
        passed.received > trips.sent && passed.sent > trips.sent,
        "the cell has counted fewer frames than were asked: {passed:?}"
    );
    ensure!(
        (passed.bad, passed.refused) == (0, 0) && peer.strays == 0,
        "{passed:?}, {} strays",
        peer.strays
    );
    let is_polled = mode == "poll";
    ensure!(
        (passed.interrupts == 0) == is_polled && passed.interrupts <= passed.received,
        "{} interrupts for {} frames",
        passed.interrupts,
        passed.received
    );
    // Nothing but the end of an interrupt, and that only where the CPU has no x2APIC.
    let has_x2apic = platform == Platform::Bochs;
    ensure!(
        passed.end_of_interrupt_exits == u64::from(!has_x2apic),
        "an end of interrupt takes {} exits",
        passed.end_of_interrupt_exits
    );
    let expected = passed.interrupts * passed.end_of_interrupt_exits;
    ensure!(
        passed.exits == expected,
        "{} exits, and {expected} ends of interrupts: {passed:?}",
        passed.exits
    );
    destroy(context)
}

fn malformed(context: &mut Context) -> Result<()> {
    start(context, "poll")?;
    let mut peer = Peer::find(context.machine.wire()?, ADDRESS.into())?;
    let patience = std::time::Duration::from_secs(2);
    for _ in 0..3 {
        let (sent, answers) = peer.malformed(patience)?;
        ensure!(sent >= 30, "only {sent} frames were sent");
        ensure!(answers.is_empty(), "nonsense was answered: {answers:?}");
        let trips = peer.ask(Questions::new(Kind::Ping, 20))?;
        ensure!(trips.is_perfect(), "{trips}");
    }
    let cell = cell(context.platform);
    ensure!(context.cell_state(cell)? == "running");
    destroy(context)
}

fn again(context: &mut Context) -> Result<()> {
    let cell = cell(context.platform);
    start(context, "poll")?;
    for round in 0..3 {
        let mut peer = Peer::find(context.machine.wire()?, ADDRESS.into())?;
        let trips = peer.ask(Questions::new(Kind::Datagram, 20))?;
        ensure!(trips.is_perfect(), "round {round}: {trips}");
        let far = peer.far();
        context.machine.gaol(&format!("cell shutdown {cell}"))?;
        let silence = std::time::Duration::from_secs(2);
        let answer = Peer::to(context.machine.wire()?, far).resolve(silence)?;
        ensure!(answer.is_none(), "a cell that was shut down answers");
        context
            .machine
            .gaol(&format!("cell load {cell} net.bin -s mode=poll"))?;
        context.machine.gaol(&format!("cell start {cell}"))?;
    }
    let mut peer = Peer::find(context.machine.wire()?, ADDRESS.into())?;
    let trips = peer.ask(Questions::new(Kind::Ping, 20))?;
    ensure!(trips.is_perfect(), "{trips}");
    destroy(context)
}
