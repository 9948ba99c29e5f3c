//! The cell that tries what is forbidden, to see what becomes of it.
//!
//! Command line: `do=` and what belongs to it; see [`Action`]. It says `violator: do NAME` before, what it saw
//! meanwhile, and `violator: survived` if it gets there; then it answers the root.
#![no_std]
#![no_main]

mod access;
mod bench;
mod control;
mod forms;
mod handover;
mod interrupt;
mod management;
mod pci;
mod processor;
mod requests;

use gaol_cell::{Cell, println};
use violator_cell::Action;

gaol_cell::entry!(main);

fn main(mut cell: Cell) -> ! {
    let arguments = cell.arguments();
    let name = arguments.get("do").unwrap_or_default();
    let Some(action) = Action::named(name) else {
        panic!("the command line says \"do={name}\", which the violator does not know")
    };

    println!("violator: do {name}");
    match action {
        Action::MemoryRead => access::read_memory(arguments),
        Action::MemoryWrite => access::write_memory(arguments),
        Action::Forms => forms::compare(arguments),
        Action::MemoryExecute => access::execute_memory(arguments),
        Action::PortIn => access::read_port(arguments),
        Action::PortOut => access::write_port(arguments),
        Action::MsrRead => access::read_msr(arguments),
        Action::MsrWrite => access::write_msr(arguments),
        Action::MsrSweep => access::sweep_msrs(),
        Action::TripleFault => control::triple_fault(),
        Action::ControlRegisters => control::write_control_registers(arguments),
        Action::CpuidStorm => control::storm(&cell),
        Action::HypercallManagement => management::call_all(arguments),
        Action::HypervisorFault => management::fail_hypervisor(arguments),
        Action::Ipi => interrupt::send_all(arguments),
        Action::Wbinvd => control::empty_caches(),
        Action::Vmx => control::execute_vmx(),
        Action::Pci => pci::try_all(arguments),
        Action::Processor => processor::check_all(),
        Action::Nmi => processor::send_nmis(),
        Action::Inspect => handover::inspect(arguments),
        Action::Leave => handover::leave(arguments),
        Action::BadStack => processor::lose_the_stack(arguments),
        Action::Deny => requests::deny(&mut cell),
        Action::Silent => requests::ignore(arguments),
        Action::Scribble => requests::scribble(),
        Action::Panic => panic!("as the command line says"),
        Action::Exception => control::raise_exception(),
        Action::Bench => bench::run(),
    }
    println!("violator: survived");
    cell.serve()
}
