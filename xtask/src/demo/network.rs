//! The network cell of the demonstration: it has the machine's network card, and somebody at the other end of the cable asks.

use anyhow::{Context as _, Result};
use gaol_tests::gaol::Gaol;
use gaol_tests::machine::Machine;
use gaol_wire::peer::{Kind, Questions};
use gaol_wire::{Peer, RoundTrips};

use super::report::NetworkReport;

/// Name of the cell, its configuration and its image.
pub const CELL: &str = "net";
/// Pings and datagrams.
pub const QUESTIONS: u16 = 100;
const ADDRESS: [u8; 4] = [10, 0, 2, 15];
/// How often is looked whether the cell is ready.
const LOOKS: u32 = 100;

/// Creates and starts the cell, and waits until it is ready.
pub fn start(machine: &mut Machine) -> Result<()> {
    machine.gaol(&format!("cell create {CELL}.toml"))?;
    machine.gaol(&format!("cell load {CELL} {CELL}.bin -s mode=msi"))?;
    machine.gaol(&format!("cell start {CELL}"))?;
    for _ in 0..LOOKS {
        if machine.check("gaol console")?.contains("net: ready") {
            return Ok(());
        }
        machine.check("sleep 0.2")?;
    }
    None.with_context(|| format!("the cell `{CELL}` is not ready"))
}

/// Asks it from the other end of the cable.
pub fn ask(machine: &Machine) -> Result<NetworkReport> {
    let mut peer = Peer::find(machine.wire()?, ADDRESS.into())?;
    let before = peer.statistics()?;
    let mut trips = RoundTrips::default();
    for kind in [Kind::Ping, Kind::Datagram] {
        trips.add(&peer.ask(Questions::new(kind, QUESTIONS / 2))?);
    }
    let after = peer.statistics()?;
    let microseconds = |time: Option<std::time::Duration>| {
        time.map_or(0, |time| {
            u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
        })
    };
    let interrupts = after.interrupts - before.interrupts;
    Ok(NetworkReport {
        name: CELL.to_owned(),
        questions: trips.sent,
        answers: trips.received,
        wrong: trips.wrong + trips.repeated,
        min_microseconds: microseconds(trips.min()),
        avg_microseconds: microseconds(trips.average()),
        max_microseconds: microseconds(trips.max()),
        interrupts,
        exits_during_run: after.exits - before.exits,
        exits_promised: interrupts * after.end_of_interrupt_exits,
    })
}
