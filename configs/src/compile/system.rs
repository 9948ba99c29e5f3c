//! The file of a system: hypervisor, console and root cell.

use gaol_abi::config::{
    CONSOLE_UART_PORT, MAX_ROOT_MSRS, ROOT_FAILURE_CONTINUE, ROOT_FAILURE_RESET,
    SYSTEM_STRICT_ROOT, SystemHeader,
};
use toml::Spanned;

use super::judge::Judge;
use super::places::{MsrPlaces, RegionPlaces, SystemPlaces, place};
use super::{DEFAULT_HYPERVISOR_SIZE, DEFAULT_ROOT_NAME, machine, memory, registers};
use crate::binary::{HYPERVISOR_ALIGNMENT, MAX_HYPERVISOR_SIZE, UART_PORTS};
use crate::encode;
use crate::quantity::Size;
use crate::schema::{HypervisorTable, OnRootFailure, Policy, RootTable, SystemFile, UartTable};

/// The rate of a 16550 whose divisor is 1.
const UART_BASE_BAUD: u64 = 115_200;

/// What the file says, and where.
pub(super) fn system(judge: &Judge<'_>, file: &SystemFile) -> (encode::System, SystemPlaces) {
    let mut system = encode::System::default();
    let mut places = SystemPlaces {
        name: place(&file.name),
        hypervisor_memory: place(&file.hypervisor.memory),
        hypervisor_address: place(&file.hypervisor.address),
        console_port: file.console.uart.as_ref().map(|uart| uart.port.span()),
        policy: place(&file.root.policy),
        machine: place(&file.machine),
        ..SystemPlaces::default()
    };
    system.header.name = match &file.name {
        Some(name) => judge.name("cell", name),
        None => encode::name(DEFAULT_ROOT_NAME).unwrap_or_default(),
    };
    system.header.deadline_milliseconds = judge.time(file.deadline.as_ref());
    system.header.root_failure = match file.on_root_failure {
        OnRootFailure::Continue => ROOT_FAILURE_CONTINUE,
        OnRootFailure::Reset => ROOT_FAILURE_RESET,
    };
    hypervisor(judge, &file.hypervisor, &mut system.header);
    if let Some(uart) = &file.console.uart {
        system.header.console_kind = CONSOLE_UART_PORT;
        system.header.console_address = uart_port(judge, uart);
        system.header.console_divisor = uart_divisor(judge, uart);
    }
    root(judge, &file.root, &mut system, &mut places);
    if let Some(table) = &file.machine {
        machine::machine(judge, table.get_ref(), &mut system, &mut places);
    }
    (system, places)
}

fn hypervisor(judge: &Judge<'_>, table: &HypervisorTable, header: &mut SystemHeader) {
    header.hypervisor_size = table
        .memory
        .as_ref()
        .map_or(DEFAULT_HYPERVISOR_SIZE, |size| size.get_ref().0);
    if let Some(size) = &table.memory {
        let bytes = size.get_ref().0;
        if bytes == 0 || !bytes.is_multiple_of(HYPERVISOR_ALIGNMENT) {
            judge.invalid(
                size.span(),
                "not whole large pages",
                "the hypervisor's memory is not a multiple of 2 MiB",
                "Write \"4 MiB\", or leave the key out.",
            );
        } else if bytes > MAX_HYPERVISOR_SIZE {
            judge.invalid(
                size.span(),
                "too large",
                "the hypervisor can't use that much memory",
                format!("Write at most \"{}\".", Size(MAX_HYPERVISOR_SIZE)),
            );
        }
    }
    let Some(address) = &table.address else {
        return;
    };
    header.hypervisor_physical = address.get_ref().0;
    let end = header
        .hypervisor_physical
        .checked_add(header.hypervisor_size);
    let is_possible = header.hypervisor_physical != 0
        && header
            .hypervisor_physical
            .is_multiple_of(HYPERVISOR_ALIGNMENT)
        && end.is_some_and(|end| end <= 1 << 48);
    if !is_possible {
        judge.invalid(
            address.span(),
            "not possible",
            "the hypervisor's memory can't be at this address",
            "Write a multiple of 2 MiB (0x200000) below 2^48, or leave the key out: Linux then gives the memory.",
        );
    }
}

fn uart_port(judge: &Judge<'_>, uart: &UartTable) -> u64 {
    let port = uart.port.get_ref().0;
    if port == 0 || port > u64::from(u16::MAX - (UART_PORTS - 1)) {
        judge.invalid(
            uart.port.span(),
            "not possible",
            format!("a UART can't be at port {port:#x}"),
            "Write the first of its eight ports, for instance 0x2f8 for the second serial interface of a PC.",
        );
    }
    port
}

fn uart_divisor(judge: &Judge<'_>, uart: &UartTable) -> u32 {
    let Some(baud) = &uart.baud else { return 1 };
    let rate = baud.get_ref().0;
    let divisor = UART_BASE_BAUD.checked_div(rate).unwrap_or(0);
    if divisor * rate != UART_BASE_BAUD || divisor > u64::from(u16::MAX) {
        judge.invalid(
            baud.span(),
            "not possible",
            format!("a UART can't run at {rate} baud"),
            "Write a whole fraction of 115200: 115200, 57600, 38400, 19200 or 9600.",
        );
    }
    u32::try_from(divisor).unwrap_or(0)
}

fn root(
    judge: &Judge<'_>,
    table: &RootTable,
    system: &mut encode::System,
    places: &mut SystemPlaces,
) {
    let is_strict = table
        .policy
        .as_ref()
        .is_some_and(|policy| *policy.get_ref() == Policy::Strict);
    if is_strict {
        system.flags |= SYSTEM_STRICT_ROOT;
        if table.memory.is_empty() {
            judge.invalid(
                places.policy.clone().unwrap_or_default(),
                "only what is listed",
                "the root cell is strict, and no memory is listed for it",
                "List it in [[root.memory]] tables, or write `policy = \"leftover\"`.",
            );
        }
    } else {
        refuse_lists(judge, table);
    }
    system.root_memory = memory::of_root(judge, &table.memory);
    system.root_ports = registers::ports(judge, &table.ports, "the root cell");
    system.root_msrs = registers::msrs(judge, &table.msrs, "the root cell", MAX_ROOT_MSRS);
    places.root_memory = each(&table.memory, RegionPlaces::of);
    places.root_msrs = each(&table.msrs, MsrPlaces::of);
    places.root_ports = table.ports.iter().map(Spanned::span).collect();
}

fn each<T, P>(tables: &[Spanned<T>], places: fn(&T) -> P) -> Vec<P> {
    tables.iter().map(|table| places(table.get_ref())).collect()
}

/// What is listed for a root cell that gets what is left over would say nothing.
fn refuse_lists(judge: &Judge<'_>, table: &RootTable) {
    let lists = [
        ("memory", table.memory.first().map(Spanned::span)),
        ("ports", table.ports.first().map(Spanned::span)),
        ("msrs", table.msrs.first().map(Spanned::span)),
    ];
    for (key, first) in lists {
        if let Some(first) = first {
            judge.invalid(
                first,
                "not for a root cell of this policy",
                format!("`{key}` is listed for a root cell that gets whatever is left over"),
                "Write `policy = \"strict\"` in [root], or take the list out.",
            );
        }
    }
}
