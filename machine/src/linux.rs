//! What Linux does with the machine: its command line, its consoles, its serial ports.

use crate::acpi::fadt::Place;
use crate::problem::{Problem, optional};
use crate::resources::Resource;
use crate::source::Source;

const CONSOLES: &str = "/proc/consoles";
const COMMAND_LINE: &str = "/proc/cmdline";
const SERIAL: &str = "/proc/tty/driver/serial";

/// Linux' parameters that mean something to Gaol, as they stand on its command line: "memmap=4M$0x3f000000".
///
/// # Errors
/// When they can't be read.
pub fn parameters(source: &Source) -> Result<Vec<String>, Problem> {
    let text = source.read_text(COMMAND_LINE)?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// A serial port of the PC's kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// Linux' number: 0 for ttyS0.
    pub number: u32,
    /// Its first register: 8 ports, or a physical address.
    pub place: Place,
    /// Its interrupt; none when Linux polls it.
    pub interrupt: Option<u32>,
    /// What it is: "16550A".
    pub kind: String,
    /// Whether Linux has its console there.
    pub is_linux_console: bool,
}

/// Names of Linux' consoles: "ttyS0".
///
/// # Errors
/// When they can't be read.
pub fn consoles(source: &Source) -> Result<Vec<String>, Problem> {
    let text = optional(source.read_text(CONSOLES))?.unwrap_or_default();
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

/// The serial ports that are there.
///
/// # Errors
/// When they can't be read, or make no sense.
pub fn serial_ports(source: &Source, ports: &[Resource]) -> Result<Vec<SerialPort>, Problem> {
    let consoles = consoles(source)?;
    // What comes behind these are counters, which differ from one reading to the next.
    let kept = optional(source.read_filtered(SERIAL, |content| {
        let text = String::from_utf8_lossy(content).into_owned();
        let lines = text.lines().map(|line| {
            let end = line.find(" tx:").unwrap_or(line.len());
            line.get(..end).unwrap_or(line)
        });
        *content = lines
            .flat_map(|line| [line, "\n"])
            .collect::<String>()
            .into_bytes();
    }))?;
    let text = String::from_utf8_lossy(kept.as_deref().unwrap_or_default()).into_owned();
    let mut found = Vec::new();
    // The first line tells the driver's version.
    for (index, line) in text.lines().enumerate().skip(1) {
        let mut port = parse_serial(line).ok_or_else(|| {
            let what = format!(
                "line {}: it is not \"number: uart:kind port:...\"",
                index + 1
            );
            Problem::garbage(SERIAL, what)
        })?;
        port.is_linux_console = consoles.contains(&format!("ttyS{}", port.number));
        if port.kind != "unknown" {
            found.push(port);
        }
    }
    // Without the driver's listing, the ports tell where serial ports are, in the order of Linux' numbers at best.
    if kept.is_none() {
        let serial = ports.iter().flat_map(Resource::walk);
        let serial = serial.filter(|resource| resource.name == "serial");
        for (number, resource) in (0..).zip(serial) {
            let Ok(port) = u16::try_from(resource.span.start()) else {
                continue;
            };
            found.push(SerialPort {
                number,
                place: Place::Port(port),
                interrupt: None,
                kind: String::new(),
                is_linux_console: consoles.contains(&format!("ttyS{number}")),
            });
        }
    }
    Ok(found)
}

/// "0: uart:16550A port:000003F8 irq:4 ..." or "1: uart:16550A mmio:0xFE034000 irq:19".
fn parse_serial(line: &str) -> Option<SerialPort> {
    let (number, rest) = line.split_once(':')?;
    let mut port = SerialPort {
        number: number.trim().parse().ok()?,
        place: Place::Port(0),
        interrupt: None,
        kind: String::new(),
        is_linux_console: false,
    };
    let mut has_place = false;
    for (key, value) in rest
        .split_whitespace()
        .filter_map(|word| word.split_once(':'))
    {
        match key {
            "uart" => value.clone_into(&mut port.kind),
            "port" => {
                port.place = Place::Port(u16::from_str_radix(value, 16).ok()?);
                has_place = true;
            }
            "mmio" | "mmio32" | "mem" => {
                let digits = value.strip_prefix("0x").unwrap_or(value);
                port.place = Place::Memory(u64::from_str_radix(digits, 16).ok()?);
                has_place = true;
            }
            "irq" => port.interrupt = value.parse().ok().filter(|&number| number != 0),
            _ => (),
        }
    }
    (has_place && !port.kind.is_empty()).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Tree;

    #[test]
    fn serial_ports_are_those_of_the_driver() {
        let mut tree = Tree::default();
        tree.insert_file(
            "/proc/consoles",
            "tty0   -WU (EC p  ) 4:1\nttyS1   -W- (E  p a) 4:65\n",
        );
        tree.insert_file(
            "/proc/tty/driver/serial",
            "serinfo:1.0 driver revision:\n\
             0: uart:16550A port:000003F8 irq:4 tx:27 rx:0 RTS|CTS|DTR\n\
             1: uart:16550A mmio:0xFE034000 irq:19 tx:0 rx:0\n\
             2: uart:unknown port:000003E8 irq:4\n",
        );
        let source = Source::tree(tree).recording();
        let found = serial_ports(&source, &[]).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].place, Place::Port(0x3f8));
        assert_eq!(
            (found[0].interrupt, found[0].is_linux_console),
            (Some(4), false)
        );
        assert_eq!(found[1].place, Place::Memory(0xfe03_4000));
        assert!(found[1].is_linux_console);
        let again = Source::tree(source.recorded());
        assert_eq!(serial_ports(&again, &[]).unwrap(), found);

        let mut tree = Tree::default();
        tree.insert_file("/proc/tty/driver/serial", "serinfo:1.0\nx: y\n");
        assert_eq!(
            serial_ports(&Source::tree(tree), &[])
                .unwrap_err()
                .to_string(),
            "/proc/tty/driver/serial: line 2: it is not \"number: uart:kind port:...\""
        );
        let ports = crate::resources::parse("/proc/ioports", "03f8-03ff : serial\n").unwrap();
        let found = serial_ports(&Source::tree(Tree::default()), &ports).unwrap();
        assert_eq!(found[0].place, Place::Port(0x3f8));
    }
}
