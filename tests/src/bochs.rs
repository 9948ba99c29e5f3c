//! How a machine is described to Bochs, which is the emulator that has VMX.
//!
//! Time is counted in emulated instructions and starts at a fixed date, so that figures repeat from run to run.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use gaol_wire::Link;

use crate::disk::Geometry;
use crate::machine::{SECOND_SERIAL, Spec};

/// The usual CPU model: all of VMX that Bochs has.
pub const MODEL: &str = "corei7_haswell_4770";

/// Where the machine's files are, below its directory.
pub(crate) const DISK: &str = "disk.img";
const CONFIGURATION: &str = "bochsrc";
const DEBUGGER_COMMANDS: &str = "bochs.rc";
/// What Bochs reports on the hardware it emulates.
const LOG: &str = "bochs.log";
/// 1 January 2026, 00:00 UTC: any fixed date will do.
const START_OF_TIME: u64 = 1_767_225_600;

/// The command that runs the machine in `directory`, which connects its first serial port to `port` of this host, and its
/// network card to a cable.
pub(crate) fn command(
    spec: &Spec,
    directory: &Path,
    geometry: Geometry,
    port: u16,
    wire: Option<&Link>,
) -> Result<Command> {
    // Left behind when an emulator was killed; it would refuse to start.
    let _ = fs::remove_file(directory.join(format!("{DISK}.lock")));
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write(CONFIGURATION, configuration(spec, geometry, port, wire))?;
    write(DEBUGGER_COMMANDS, debugger_commands(spec.cpus))?;
    let output = fs::File::create(directory.join("bochs.out"))?;
    // Ended by the kernel when this process dies, however it does.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "bochs", "-q", "-f", CONFIGURATION])
        .args(["-rc", DEBUGGER_COMMANDS])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    Ok(command)
}

/// Debian's Bochs stops in its debugger first; and again when it gets SIGINT. Then it tells where each CPU is.
fn debugger_commands(cpus: u32) -> String {
    let mut text = "c\n".to_owned();
    for cpu in 0..cpus {
        text.push_str(&format!(
            "set $cpu = {cpu}\nr\nsreg\ncreg\nu /8\nprint-stack 24\n"
        ));
    }
    text.push_str("q\n");
    text
}

fn configuration(spec: &Spec, geometry: Geometry, port: u16, wire: Option<&Link>) -> String {
    let verbosity = if spec.report { "report" } else { "ignore" };
    let Geometry {
        cylinders,
        heads,
        sectors_per_track,
    } = geometry;
    let mut text = format!(
        "cpu: model={model}, count={cpus}:1:1, ips={ips}, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={memory}, host={memory}
romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=/usr/share/vgabios/vgabios.bin
pci: enabled=1, chipset=i440fx{slots}
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, mode=flat, path={DISK}, cylinders={cylinders}, heads={heads}, spt={sectors_per_track}
boot: disk
log: {LOG}
com1: enabled=1, mode=socket-client, dev=localhost:{port}
com2: enabled=1, mode=file, dev={SECOND_SERIAL}
clock: sync=none, time0={START_OF_TIME}
display_library: rfb, options=\"timeout=0\"
vga: realtime=0
speaker: enabled=0
sound: driver=dummy
panic: action=fatal
error: action={verbosity}
info: action={verbosity}
",
        slots = if spec.network_card { ", slot2=e1000" } else { "" },
        model = spec.model,
        cpus = spec.cpus,
        ips = spec.instructions_per_second,
        memory = spec.memory_mib,
    );
    if spec.network_card {
        let cable = wire.map_or("ethmod=null".to_owned(), Link::bochs);
        text.push_str(&format!(
            "e1000: enabled=1, mac=52:54:00:12:34:56, {cable}\n"
        ));
    }
    for line in &spec.hardware {
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Platform;

    #[test]
    fn the_debugger_shows_every_cpu_when_it_is_stopped() {
        let commands = debugger_commands(2);
        assert!(commands.starts_with("c\nset $cpu = 0\n") && commands.ends_with("\nq\n"));
        assert!(commands.contains("set $cpu = 1\n") && !commands.contains("= 2"));
    }

    #[test]
    fn the_configuration_describes_the_machine() {
        let mut spec = Spec::new("name", Platform::Bochs);
        spec.cpus = 3;
        spec.memory_mib = 768;
        let geometry = Geometry {
            cylinders: 7,
            heads: 16,
            sectors_per_track: 63,
        };
        let text = configuration(&spec, geometry, 4711, None);
        for part in [
            "count=3:1:1",
            "guest=768, host=768",
            "localhost:4711",
            "cylinders=7, heads=16, spt=63",
            "info: action=ignore",
        ] {
            assert!(text.contains(part), "{part} is missing");
        }
        assert!(!text.contains("e1000"));
        spec.network_card = true;
        let with_card = configuration(&spec, geometry, 1, None);
        assert!(with_card.contains("slot2=e1000\n") && with_card.contains("\ne1000: enabled=1"));
        assert!(with_card.contains("ethmod=null"));
        let link = Link::open().unwrap();
        let with_cable = configuration(&spec, geometry, 1, Some(&link));
        assert!(with_cable.contains(&link.bochs()) && !with_cable.contains("null"));
        spec.report = true;
        spec.hardware.push("com4: enabled=1, mode=null".to_owned());
        assert!(
            configuration(&spec, geometry, 1, None).ends_with("\ncom4: enabled=1, mode=null\n")
        );
        assert!(configuration(&spec, geometry, 1, None).contains("info: action=report"));
    }
}
