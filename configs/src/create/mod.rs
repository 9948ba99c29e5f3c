//! `gaol config create`: the system file for a machine, from what was read of it.
//!
//! Invariants: the same machine and the same options give the same bytes; what is returned was compiled, and describes
//! the machine that it was made from; what could not be read is said in a comment of the file and among the notes.

mod classes;
mod describe;
mod fit;
mod strict;
mod text;

#[cfg(test)]
pub(crate) mod tests;

use gaol_machine::acpi::fadt::Place;
use gaol_machine::linux::SerialPort;
use gaol_machine::problem::Kind;
use gaol_machine::processors::Virtualization;
use gaol_machine::{Machine, Problem as Unread, Source};

use crate::binary::{HYPERVISOR_ALIGNMENT, MAX_HYPERVISOR_SIZE, UART_PORTS};
use crate::check::{any_machine, check};
use crate::compile::{DEFAULT_HYPERVISOR_SIZE, System};
use crate::problem::Problem;
use crate::quantity::Size;
use crate::schema::Policy;

pub use classes::class_name;
pub use fit::fits;
pub(crate) use text::Text;
use text::comment;

/// Where the hypervisor's console goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// To a serial port that Linux does not have its console on, if there is one.
    #[default]
    Spare,
    /// To the serial port at this I/O port.
    Port(u16),
    /// Into memory only.
    None,
}

/// What the user decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What the root cell gets.
    pub policy: Policy,
    /// Where the hypervisor's console goes.
    pub console: Console,
    /// Bytes of the hypervisor's memory; by default what suits the machine.
    pub memory: Option<u64>,
}

/// A system file.
#[derive(Clone, Debug)]
pub struct Created {
    /// The file.
    pub toml: String,
    /// The same, compiled.
    pub system: System,
    /// What could not be read, was assumed or was left out, in sentences.
    pub notes: Vec<String>,
}

/// Why there is no system file.
#[derive(Debug)]
pub enum Refused {
    /// What can't be read of the machine, or makes no sense.
    Machine(Vec<Unread>),
    /// What the compiler or the check says of what would be written.
    Configuration(Vec<Problem>),
    /// What was asked for and can't be had: the sentence and the remedy.
    Request(String, String),
}

/// Reads a machine as far as it can be read. Those problems that leave a description possible come as notes.
///
/// # Errors
/// What makes no sense, or is needed for any description.
pub fn read(source: &Source) -> Result<(Machine, Vec<Unread>), Refused> {
    let mut problems = Vec::new();
    let machine = Machine::read_what_can_be(source, &mut problems);
    let is_lack = |problem: &Unread| matches!(problem.kind(), Kind::Missing | Kind::Permission);
    // Without processors there is nothing to describe.
    if machine.processors.all.is_empty() || !problems.iter().all(is_lack) {
        return Err(Refused::Machine(problems));
    }
    Ok((machine, problems))
}

/// Writes the system file of a machine. `lacks` is what could not be read of it, `name` what messages call the file.
///
/// # Errors
/// What the machine or the options have that no file can say.
pub fn create(
    name: &str,
    machine: &Machine,
    lacks: &[Unread],
    options: &Options,
) -> Result<Created, Refused> {
    describable(machine)?;
    let mut notes: Vec<String> = lacks
        .iter()
        .map(|lack| format!("{lack}. {}", lack.remedy()))
        .collect();
    notes.extend(machine.notes.iter().cloned());
    let mut text = Text::default();
    head(&mut text, machine, &notes);
    hypervisor(&mut text, machine, options)?;
    let console = console(&mut text, machine, options)?;
    match options.policy {
        Policy::Leftover => leftover(&mut text),
        Policy::Strict => strict::root(&mut text, machine, console, &mut notes),
    }
    describe::machine(&mut text, machine, &mut notes);
    let toml = text.finish();
    let system = System::compile(name, &toml).map_err(Refused::Configuration)?;
    let problems = check(any_machine(), &system, &[]);
    match problems.is_empty() {
        true => Ok(Created {
            toml,
            system,
            notes,
        }),
        false => Err(Refused::Configuration(problems)),
    }
}

/// CPUs are described in the order of Linux' numbers, all of them, by their APIC ids.
fn describable(machine: &Machine) -> Result<(), Refused> {
    let mut problems = Vec::new();
    for (number, processor) in (0..).zip(&machine.processors.all) {
        if processor.id != number {
            problems.push(Unread::new(
                Kind::Garbage,
                "/sys/devices/system/cpu/present",
                format!("there is a CPU {}, and no CPU {number}", processor.id),
                "Boot Linux without CPUs that can be plugged in later.",
            ));
            break;
        }
        if processor.apic_id.is_none() {
            problems.push(Unread::new(
                Kind::Missing,
                format!("CPU {}", processor.id),
                "it is offline, so that its APIC id is not known",
                format!(
                    "Bring it online: echo 1 > /sys/devices/system/cpu/cpu{}/online",
                    processor.id
                ),
            ));
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Refused::Machine(problems)),
    }
}

fn head(text: &mut Text, machine: &Machine, notes: &[String]) {
    let processors = &machine.processors;
    let count = processors.all.len();
    let virtualization = match processors.virtualization {
        Some(Virtualization::Vmx) => "VMX",
        Some(Virtualization::Svm) => "SVM",
        None => "neither VMX nor SVM (see `gaol hardware check`)",
    };
    let ram: u64 = machine.ram.iter().map(|ram| ram.span.size()).sum();
    text.comment(
        "A machine, the hypervisor and the root cell, as `gaol config create` describes them.",
    );
    text.comment("");
    text.comment(&format!(
        "{count} {} of {} with {virtualization}, {} MiB of RAM, {} PCI functions.",
        if count == 1 { "CPU" } else { "CPUs" },
        processors.vendor,
        ram >> 20,
        machine.pci.functions.len()
    ));
    text.comment("");
    text.comment("Check it together with cells:  gaol config check SYSTEM.toml CELL.toml ...");
    text.comment("Put it to use:                 gaol enable SYSTEM.toml");
    if !notes.is_empty() {
        text.comment("");
        text.comment("What is not known, or was assumed:");
        for note in notes {
            text.item(note);
        }
    }
}

/// Bytes that the hypervisor needs on a machine: the image, the public pages, the tables to boot with and those of the
/// root cell are about 2 MiB; each CPU has 16 pages of its own, a table of about ten, and tables of a cell that it may
/// run; the root cell's tables have a page for each GiB of RAM, whose leaves may be small, and for each 512 GiB of
/// addresses.
#[must_use]
pub fn hypervisor_memory(machine: &Machine) -> u64 {
    const FIXED: u64 = 512;
    const FOR_EACH_CPU: u64 = 64;
    let cpus = machine.processors.all.len() as u64;
    let ram = machine.ram.iter().map(|ram| ram.span.size() >> 30);
    let ram = ram.fold(0, u64::saturating_add);
    let end = machine.iomem.iter().map(|resource| resource.span.last());
    let end = end.max().unwrap_or(0) >> 39;
    let frames = cpus
        .saturating_mul(FOR_EACH_CPU)
        .saturating_add(FIXED)
        .saturating_add(ram)
        .saturating_add(end);
    frames
        .saturating_mul(gaol_abi::PAGE_SIZE)
        .min(MAX_HYPERVISOR_SIZE)
        .next_multiple_of(HYPERVISOR_ALIGNMENT)
        .max(DEFAULT_HYPERVISOR_SIZE)
}

fn hypervisor(text: &mut Text, machine: &Machine, options: &Options) -> Result<(), Refused> {
    text.table("[hypervisor]");
    let suits = hypervisor_memory(machine);
    let size = options.memory.unwrap_or(suits);
    if size == 0 || !size.is_multiple_of(HYPERVISOR_ALIGNMENT) || size > MAX_HYPERVISOR_SIZE {
        return Err(Refused::Request(
            format!("the hypervisor's memory can't have {}", Size(size)),
            format!(
                "Give a multiple of 2 MiB up to \"{}\"; this machine needs about \"{}\".",
                Size(MAX_HYPERVISOR_SIZE),
                Size(suits)
            ),
        ));
    }
    text.comment(&match options.memory {
        None => format!(
            "What suits {} CPUs: the image, a stack and tables for each CPU, tables of the root and of cells.",
            machine.processors.all.len()
        ),
        Some(_) => format!("As it was asked for; about \"{}\" suits this machine.", Size(suits)),
    });
    text.line(&format!("memory = \"{}\"", Size(size)));
    let reserved = machine.linux_parameters.iter();
    for parameter in reserved.filter(|it| it.starts_with("memmap=") && it.contains('$')) {
        let words = format!(
            "Linux was booted with {}: to have the hypervisor there, write `address = ` and its first address.",
            comment(parameter)
        );
        text.comment(&words);
    }
    Ok(())
}

/// The ports of a serial port that an option names or that Linux can't mind; none for the ring alone.
fn console(text: &mut Text, machine: &Machine, options: &Options) -> Result<Option<u16>, Refused> {
    text.table("[console]");
    let port_of = |serial: &SerialPort| match serial.place {
        Place::Port(port) => Some(port),
        _ => None,
    };
    let chosen = match options.console {
        Console::None => {
            text.comment("No device, as it was asked for: `gaol console` shows what is printed.");
            return Ok(None);
        }
        Console::Port(port) => {
            let found = machine
                .serial_ports
                .iter()
                .find(|it| port_of(it) == Some(port));
            if let Some(serial) = found.filter(|it| is_linux_console(machine, it)) {
                return Err(Refused::Request(
                    format!(
                        "the serial port at {port:#x} is ttyS{}, on which Linux has its console",
                        serial.number
                    ),
                    "Give another port, or --console none: `gaol console` shows what is printed."
                        .to_owned(),
                ));
            }
            text.comment("The port that was asked for: Linux must not use it.");
            Some(port)
        }
        Console::Spare => {
            let spare = machine.serial_ports.iter().find(|serial| {
                // Without the driver's listing it is not known whose console is where.
                port_of(serial).is_some()
                    && !serial.kind.is_empty()
                    && !is_linux_console(machine, serial)
            });
            if let Some(serial) = spare {
                text.comment(&format!(
                    "ttyS{} ({}), from /proc/tty/driver/serial; Linux has no console there. Nothing of Linux may use it.",
                    serial.number,
                    comment(&serial.kind)
                ));
            }
            spare.and_then(port_of)
        }
    };
    match chosen {
        Some(port) => text.line(&format!("uart = {{ port = {port:#x}, baud = 115200 }}")),
        None => text.comment(
            "No serial port was found that certainly is not Linux' console: `gaol console` shows what is printed.",
        ),
    }
    Ok(chosen)
}

/// Whether Linux prints on a serial port, now or when it crashes.
fn is_linux_console(machine: &Machine, serial: &SerialPort) -> bool {
    let name = format!("ttyS{}", serial.number);
    let address = match serial.place {
        Place::Port(port) => format!("{port:#x}"),
        Place::Memory(address) => format!("{address:#x}"),
        Place::Other(..) => String::new(),
    };
    let mut parameters = machine.linux_parameters.iter();
    serial.is_linux_console
        || parameters.any(|parameter| {
            let Some((key, value)) = parameter.split_once('=') else {
                return false;
            };
            let is_about = matches!(key, "console" | "earlycon" | "earlyprintk");
            is_about && value.split(',').any(|word| word == name || word == address)
        })
}

/// Ports that the hypervisor's console takes.
fn console_ports(console: Option<u16>) -> Option<(u64, u64)> {
    console.map(|port| (u64::from(port), u64::from(port) + u64::from(UART_PORTS) - 1))
}

fn leftover(text: &mut Text) {
    text.table("[root]");
    text.comment("The root cell, which is Linux, owns what neither a cell nor the hypervisor has.");
    text.line("policy = \"leftover\"");
}
