//! Asks whoever is at the far end of a cable: `ask OWN_PORT FAR_PORT ADDRESS`.

use std::time::Duration;

use anyhow::{Context, Result};
use gaol_wire::peer::{Kind, LONGEST, Questions};
use gaol_wire::{Link, Peer};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [own, far, address] = &arguments[..] else {
        anyhow::bail!("usage: ask OWN_PORT FAR_PORT ADDRESS");
    };
    let link = Link::at(own.parse()?, far.parse()?)?;
    let mut peer = Peer::find(&link, address.parse().context("no address")?)?;
    println!("{:?}", peer.far());
    println!("{:?}", peer.statistics()?);
    for kind in [Kind::Ping, Kind::Datagram] {
        for (size, window) in [(8, 1), (56, 1), (LONGEST, 1), (56, 16), (LONGEST, 32)] {
            let questions = Questions::new(kind, 500).size(size).window(window);
            println!("{kind:?} {size} x{window}: {}", peer.ask(questions)?);
        }
    }
    let (sent, answers) = peer.malformed(Duration::from_secs(1))?;
    println!("{sent} malformed, {answers:?}");
    println!("{:?}, {} strays", peer.statistics()?, peer.strays);
    Ok(())
}
